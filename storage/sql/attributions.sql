-- How much each example raises the measured output of a query, by every pairwise method; positive
-- helps. The best of each sign per query, unless a method was asked for all pairs.
SELECT method, query_id, example_id, score, run_id
FROM tables.attribution
