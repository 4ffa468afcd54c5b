-- The vectors of all checkpoints side by side, whose cosines are the scores of LESS.
SELECT id, role, vector, method, run_id
FROM tables.less
