-- What each example is worth to each utility: above 0 helps, rank 1 helps most. The values are
-- summed once, by the statements in `summed/`, which take this one's place until then.
SELECT method, semivalue, utility, example_id, value, stderr, n_samples, n_observed, p_helpful,
       rank, run_id
FROM tables.shapley_value
