-- What each example is worth to a vote of nearest neighbours, exactly: a mean over the labelled
-- queries, whose sums per block are added up as whole multiples of 2^-100 of the largest, hence
-- the same in any order (see shapley_round.sql); above 0 helps.
WITH unit AS (
    SELECT pow(2e0, 100 - ceil(log2(greatest(max(abs(total)), 1e-99)))) AS scale
    FROM tables.knn_block
), means AS (
    SELECT run_id, method, example_id,
           sum((total * scale)::HUGEINT)::DOUBLE / any_value(scale) / sum(n_queries) AS value
    FROM tables.knn_block, unit
    GROUP BY run_id, method, example_id
)
SELECT method, 'shapley' AS semivalue, 'knn' AS utility, example_id, value, 0e0 AS stderr,
       NULL::BIGINT AS n_samples, NULL::BIGINT AS n_observed, (1 + sign(value)) / 2e0 AS p_helpful,
       row_number() OVER (PARTITION BY run_id, method ORDER BY value DESC, example_id) AS rank,
       run_id
FROM means
