-- Texts of which no model of the run reads all.
SELECT DISTINCT t.id AS example_id, 'longer than max_length' AS issue, NULL::BIGINT AS other_id,
       NULL AS other_role, t.run_id
FROM tables.text_length AS t
JOIN tables.label AS l ON l.id = t.id AND l.role = t.role
WHERE t.role = 'example' AND n_tokens > max_length
