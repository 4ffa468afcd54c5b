-- The size of marginal contributions, by the size of the coalition that an example joined.
SELECT method, utility, smallest AS smallest_size, 2 * smallest AS largest_size,
       sum(n_marginals)::BIGINT AS n_marginals,
       fsum(total_abs ORDER BY round) / sum(n_marginals) AS mean_abs,
       sqrt(fsum(total_sq ORDER BY round) / sum(n_marginals)) AS root_mean_square,
       run_id
FROM tables.shapley_stratum
GROUP BY run_id, method, utility, smallest
