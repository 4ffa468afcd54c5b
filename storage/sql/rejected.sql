-- Rows of the sources that could not be used, each with the reason.
SELECT source, row_number, source_id, reason, raw, role, run_id
FROM tables.rejected
