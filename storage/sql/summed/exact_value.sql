-- Values that are computed in closed form: no sampling, hence no error; above 0 helps.
SELECT method, semivalue, utility, example_id, value, 0e0 AS stderr, NULL::BIGINT AS n_samples,
       NULL::BIGINT AS n_observed, (1 + sign(value)) / 2e0 AS p_helpful,
       row_number() OVER (
           PARTITION BY run_id, method, semivalue, utility ORDER BY value DESC, example_id
       ) AS rank,
       run_id
FROM tables.exact_value
