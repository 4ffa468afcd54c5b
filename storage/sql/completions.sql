-- Prompts and answers of a corpus of completions as people read them; a plain text is an answer
-- without a prompt. Of a conversation the answer is the last message that is learned, and the prompt
-- what stands before it: a single message as it is, several with their roles.
WITH form AS (
    SELECT json_extract_string(details, '$.format') AS form
    FROM provenance.manifest
    WHERE "table" = 'text'
    LIMIT 1
), turn AS (
    SELECT t.id, t.role, t.run_id, t.text, t.text_b, form,
           CASE WHEN form = 'messages' THEN turns_of(t.text) END AS turns
    FROM tables.text AS t CROSS JOIN form
    WHERE t.text IS NOT NULL
), said AS (
    SELECT *, n_before_answer(turns) AS n_before
    FROM turn
)
SELECT id, role,
       CASE WHEN form = 'text' THEN NULL
            WHEN form <> 'messages' THEN text
            WHEN n_before = 1 THEN said_of(turns[1])
            ELSE list_aggregate(list_transform(turns[:n_before],
                     lambda turn: turn.role || ': ' || said_of(turn)), 'string_agg', chr(10))
       END AS prompt,
       CASE form WHEN 'text' THEN text WHEN 'messages' THEN said_of(turns[n_before + 1])
            ELSE text_b
       END AS answer,
       coalesce(len(turns), CASE form WHEN 'text' THEN 1 ELSE 2 END) AS n_turns, run_id
FROM said
