-- What each example is worth for one query; above 0 helps.
SELECT method, utility, query_id, example_id, value, stderr, semivalue, run_id
FROM tables.shapley_query
