-- The support spectrum of a query towards each class, -1 for the general one: rank 1 is the example
-- that matters most everywhere, the last one the nearest. `n_support` is the size of the whole set,
-- and a set without examples has one row, with NULL for the example.
SELECT z.method, z.query_id, z.contrast, coalesce(c.label_name, 'general') AS contrast_name, s.rank,
       s.example_id, s.global_score, s.local_score, z.n_support, z.run_id
FROM tables.support_size AS z
LEFT JOIN tables.support AS s ON s.query_id = z.query_id AND s.contrast = z.contrast
    AND s.method = z.method
LEFT JOIN provenance.class AS c ON c.label = z.contrast
