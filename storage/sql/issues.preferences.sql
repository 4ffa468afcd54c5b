-- Pairs that stand in a corpus of preferences both ways round: with the same prompt, the answer that is
-- chosen in one is rejected in the other, `other_id` the first of those. One of the two is wrong, or
-- neither answer is better. Texts are compared without case and spacing, conversations as JSON.
WITH side AS (
    SELECT t.id, t.run_id, md5_number(bare_text(t.text, t.text_b ->> '$.tools')) AS prompt,
           md5_number(bare_text(t.text_b ->> '$.chosen', NULL)) AS chosen,
           md5_number(bare_text(t.text_b ->> '$.rejected', NULL)) AS rejected
    FROM tables.text AS t
    JOIN tables.label AS l ON l.id = t.id AND l.role = t.role
    WHERE t.role = 'example' AND t.text IS NOT NULL
)
SELECT one.id AS example_id, 'same pair the other way round' AS issue, min(other.id) AS other_id,
       'example' AS other_role, one.run_id
FROM side AS one
JOIN side AS other ON other.prompt = one.prompt AND other.chosen = one.rejected
    AND other.rejected = one.chosen
GROUP BY ALL
