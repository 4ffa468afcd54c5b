-- The support of a generated token: places in the corpus with the same next token, from the one
-- that matters most for all queries (rank 1) to the most alike. An empty set has one row with
-- NULLs.
SELECT z.method, z.query_id, z.token_index, c.token, s.rank, s.example_id, s.example_token_index,
       s.global_score, s.local_score, s.context, z.n_support, z.n_places, z.run_id
FROM tables.token_support_size AS z
JOIN tables.continuation AS c ON c.query_id = z.query_id AND c.token_index = z.token_index
LEFT JOIN tables.token_support AS s ON s.query_id = z.query_id AND s.method = z.method
    AND s.token_index = z.token_index
