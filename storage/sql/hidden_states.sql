SELECT id, role, vector, method, run_id
FROM tables.hidden_states
