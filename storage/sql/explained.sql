-- The outputs of a query that token methods explain: each with its value at the query and at the
-- start of the method's path, and `delta`, by which the scores miss the difference of the two.
SELECT e.method, e.query_id, e.output, coalesce(e.output_name, c.label_name) AS output_name,
       e.choice, e.value, e.baseline_value, e.delta,
       100 * abs(e.delta) / nullif(abs(e.value - e.baseline_value), 0) AS delta_percent,
       e.word_distance, e.n_tokens, e.n_gradients, e.run_id
FROM tables.explained AS e
LEFT JOIN provenance.class AS c ON c.label = e.choice AND e.output_name IS NULL
