SELECT id, role, token_index, vector, method, run_id
FROM tables.token_gradient
