-- Texts of which no model of the run reads all.
SELECT DISTINCT id AS example_id, 'longer than max_length' AS issue, NULL::BIGINT AS other_id, NULL AS other_role, run_id
FROM tables.text_length
WHERE role = 'example' AND n_tokens > max_length
