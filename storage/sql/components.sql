-- The two parts of a pairwise score, whose product it is: the global one is at least 0 and depends
-- on the example alone, the local one has the sign.
SELECT method, query_id, example_id, global_score, local_score, run_id
FROM tables.attribution
WHERE global_score IS NOT NULL
