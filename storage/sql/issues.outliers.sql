-- Examples far from all others.
SELECT example_id, 'outlier' AS issue, NULL::BIGINT AS other_id, NULL AS other_role, run_id
FROM tables.outlier
WHERE is_outlier
