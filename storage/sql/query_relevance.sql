-- How relevant every example is to the queries: its place when queries take turns to choose, the
-- largest cosine with one, and with which.
SELECT method, example_id, rank, similarity, query_id, is_taken, run_id
FROM tables.query_relevance
