-- The margin of a query's rewards after a short training on pairs: above 0 its order was learned.
SELECT method, trained_on, draw, query_id, margin, run_id
FROM tables.trial_margin
