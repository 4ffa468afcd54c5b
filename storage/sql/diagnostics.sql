-- The norm and status of the features of every row. An outlier's norm is more than ten times the
-- median of its method, or less than a tenth of it. The median, for outliers move the mean and the
-- variance themselves; one for all rows of the run, examples and queries, as both meet in one
-- kernel; ten, as norms that differ less are normal in text. A row whose norm is not finite does
-- not count.
WITH middle AS (
    SELECT run_id, method, median(norm) AS norm
    FROM tables.diagnostics
    GROUP BY run_id, method
)
SELECT d.method, d.id, d.role, d.n_tokens, d.measured, d.norm, d.status,
       d.norm > 10 * m.norm OR d.norm < m.norm / 10 AS is_outlier, d.run_id
FROM tables.diagnostics AS d
JOIN middle AS m ON m.run_id = d.run_id AND m.method = d.method
