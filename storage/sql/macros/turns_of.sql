-- The messages of a conversation that is JSON: a list of their roles, contents, reasoning (by the keys of
-- `stages.model.chats`) and calls of tools, and the marks that say whether they are learned.
CREATE OR REPLACE MACRO turns_of(conversation) AS
    from_json(conversation, '[{"role": "VARCHAR", "content": "VARCHAR", "reasoning_content": "VARCHAR",
                               "reasoning": "VARCHAR", "thinking": "VARCHAR", "tool_calls": "JSON",
                               "weight": "DOUBLE", "train": "BOOLEAN"}]');
