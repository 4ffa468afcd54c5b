-- The vectors that the user brought along.
SELECT id, role, vector, method, run_id
FROM tables.features
