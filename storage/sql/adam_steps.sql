-- Of an example the projected step that Adam would take on it alone, of a query its gradient.
SELECT id, role, vector, method, run_id
FROM tables.adam_step
