-- The messages of a conversation that is JSON as people read them: a single one as it is, several
-- with their roles.
CREATE OR REPLACE MACRO turns_said(conversation) AS
    CASE WHEN len(turns_of(conversation)) = 1 THEN said_of(turns_of(conversation)[1])
         ELSE list_aggregate(list_transform(turns_of(conversation),
                  lambda message: message.role || ': ' || said_of(message)),
                  'string_agg', chr(10))
    END;
