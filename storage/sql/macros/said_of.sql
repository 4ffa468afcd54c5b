-- What a message of `turns_of` says, as people read it: reasoning that stands beside its text, the text,
-- and a line for each function that it calls, with the arguments.
CREATE OR REPLACE MACRO said_of(message) AS
    concat_ws(chr(10),
        '<think>' || coalesce(message.reasoning_content, message.reasoning, message.thinking) || '</think>',
        nullif(message.content, ''),
        list_aggregate(list_transform(from_json(message.tool_calls, '["JSON"]'), lambda called:
            concat_ws(' ', coalesce(called ->> '$.function.name', called ->> '$.name'),
                      coalesce(called ->> '$.function.arguments', called ->> '$.arguments'))),
            'string_agg', chr(10)));
