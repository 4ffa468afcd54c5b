-- What each example is worth to each utility: above 0 helps, rank 1 helps most. A sample is one
-- unit: an independent estimate by one permutation, or by coalitions of all sizes. A sum of doubles
-- depends on its order, hence on threads; an ordered sum took ten times as long. So numbers are
-- summed exactly, as whole multiples of 2^-100 of the largest.
WITH unit AS (
    SELECT pow(2e0, 100 - ceil(log2(greatest(max(abs(total)), max(total_sq), 1e-99)))) AS scale
    FROM tables.shapley_round
), sums AS (
    SELECT run_id, method, semivalue, utility, example_id,
           sum((total * scale)::HUGEINT)::DOUBLE / any_value(scale) AS total,
           sum((total_sq * scale)::HUGEINT)::DOUBLE / any_value(scale) AS total_sq,
           sum(n_units)::BIGINT AS n_samples,
           sum(n_observed)::BIGINT AS n_observed,
           max(n_prior) AS n_prior
    FROM tables.shapley_round, unit
    GROUP BY run_id, method, semivalue, utility, example_id
), spread AS (
    -- Equal samples leave only the rounding of two nearly equal numbers, which is no spread.
    SELECT *, total / n_samples AS value, total_sq - total * total / n_samples AS raw_spread,
           CASE WHEN raw_spread > 1e-13 * total_sq THEN raw_spread ELSE 0e0 END AS squares
    FROM sums
), common AS (
    -- The mean over the examples, summed exactly, too.
    SELECT run_id, method, semivalue, utility,
           pow(2e0, 80 - ceil(log2(greatest(max(squares), 1e-99)))) AS finest
    FROM spread
    GROUP BY run_id, method, semivalue, utility
), prior AS (
    SELECT run_id, method, semivalue, utility,
           sum((squares * finest)::HUGEINT)::DOUBLE / any_value(finest) / count(*) AS mean_squares
    FROM spread JOIN common USING (run_id, method, semivalue, utility)
    GROUP BY run_id, method, semivalue, utility
), errors AS (
    -- An example's own variance counts for n_samples - 1, that of all for n_prior: permutations in
    -- which it came late say little of its variance (stages/game/sums.py).
    SELECT *, CASE
                  WHEN n_samples > 1
                  THEN sqrt((squares + n_prior * mean_squares / (n_samples - 1))
                            / (n_samples - 1 + n_prior) / n_samples)
              END AS stderr
    FROM spread JOIN prior USING (run_id, method, semivalue, utility)
)
SELECT method, semivalue, utility, example_id, value, stderr, n_samples, n_observed,
       CASE
           WHEN stderr > 0 THEN student_t_cdf(value / stderr, n_samples - 1)
           WHEN stderr = 0 THEN (1 + sign(value)) / 2e0
       END AS p_helpful,
       row_number() OVER (
           PARTITION BY run_id, method, semivalue, utility ORDER BY value DESC, example_id
       ) AS rank,
       run_id
FROM errors
