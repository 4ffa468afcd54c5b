-- The messages of a conversation that is JSON: a list of their roles and contents.
CREATE OR REPLACE MACRO turns_of(conversation) AS
    from_json(conversation, '[{"role": "VARCHAR", "content": "VARCHAR"}]');
