-- The vectors that the source of the corpus holds (`features:`).
SELECT id, role, vector, method, run_id
FROM tables.features
