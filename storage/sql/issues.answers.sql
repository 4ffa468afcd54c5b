-- Rows of a corpus of completions whose prompt stands there with other answers, too: `n_answers` of
-- them, and `other_id` is the first row with another one than its own. That says no more: a task may
-- have several right answers. Prompts and answers are compared without case and spacing, those of
-- conversations with their roles, calls of tools and tools; a row without a prompt has none to share.
WITH form AS (
    SELECT json_extract_string(details, '$.format') AS form
    FROM provenance.manifest
    WHERE "table" = 'text'
    LIMIT 1
), turn AS (
    SELECT t.id, t.run_id, t.text, t.text_b, form,
           CASE WHEN form = 'messages' THEN turns_of(t.text) END AS turns,
           n_before_answer(turns) AS n_before
    FROM tables.text AS t CROSS JOIN form
    JOIN tables.label AS l ON l.id = t.id AND l.role = t.role
    WHERE t.role = 'example' AND t.text IS NOT NULL AND form <> 'text'
), said AS (
    SELECT id, run_id, text, text_b, turns[n_before + 1] AS answered, turns IS NULL AS is_pair,
           list_transform(turns[:n_before], lambda message: message.role) AS roles,
           list_transform(turns[:n_before], lambda message:
               bare_text(message.content, message.tool_calls)) AS asked
    FROM turn
), kept AS (
    SELECT id, run_id,
           md5_number(CASE WHEN is_pair THEN bare_text(text, NULL)
                      ELSE concat_ws(chr(1), roles::VARCHAR, array_to_string(asked, chr(2)),
                                     bare_text(text_b, NULL)) END) AS prompt,
           md5_number(CASE WHEN is_pair THEN bare_text(text_b, NULL)
                      ELSE bare_text(answered.content, answered.tool_calls) END) AS answer
    FROM said
    WHERE CASE WHEN is_pair THEN bare_text(text, NULL) ELSE array_to_string(asked, '') END <> ''
), several AS (
    SELECT prompt, list_sort(list(first_id))[:2] AS first_ids, count(*) AS n_answers
    FROM (SELECT prompt, min(id) AS first_id FROM kept GROUP BY prompt, answer)
    GROUP BY prompt
    HAVING count(*) > 1
)
SELECT k.id AS example_id, 'same prompt with another answer' AS issue,
       CASE WHEN k.answer = one.answer THEN first_ids[2] ELSE first_ids[1] END AS other_id,
       'example' AS other_role, n_answers, k.run_id
FROM kept AS k JOIN several USING (prompt) JOIN kept AS one ON one.id = first_ids[1]
