-- How far every example lies from all others, from 0 to 2, as a score (low = far), and the decision.
SELECT example_id, method, outlier_score, is_outlier, distance, run_id
FROM tables.outlier
