-- Examples far from all others.
SELECT example_id, 'outlier' AS issue, NULL::BIGINT AS other_id, NULL AS other_role, o.run_id
FROM tables.outlier AS o
JOIN tables.label AS l ON l.id = example_id AND l.role = 'example'
WHERE is_outlier
