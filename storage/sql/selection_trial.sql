-- The loss of a query, in nats a token, after a short training on nothing, on the chosen rows (by
-- other queries), on random rows of as many tokens, and on all rows.
SELECT method, trained_on, draw, query_id, loss, n_rows, n_tokens, run_id
FROM tables.selection_trial
