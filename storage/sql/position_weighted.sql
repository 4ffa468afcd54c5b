SELECT id, role, vector, method, run_id
FROM tables.position_weighted
