-- The examples that support the prediction of a query against each class, or against all others in
-- general (-1): rank 1 is the one that matters most for all queries, the last the one most like
-- this query. `n_support` is the size of the set; an empty set has one row, with NULL for the
-- example.
SELECT z.method, z.query_id, z.contrast, coalesce(c.label_name, 'general') AS contrast_name, s.rank,
       s.example_id, s.global_score, s.local_score, z.n_support, z.run_id
FROM tables.support_size AS z
LEFT JOIN tables.support AS s ON s.query_id = z.query_id AND s.contrast = z.contrast
    AND s.method = z.method
LEFT JOIN provenance.class AS c ON c.label = z.contrast
