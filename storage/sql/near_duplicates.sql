-- The examples whose texts are nearly the same as another's or a query's: their cluster, named by
-- its smallest id, the nearest other example and the nearest query, and how alike they are.
SELECT example_id, method, cluster, other_id, similarity, query_id, query_similarity, run_id
FROM tables.near_duplicate
