-- One row per table of the run: which stage wrote it, from what, with what, and at what cost.
SELECT stage, version, fields, model, revision, seed, rows, bytes, seconds, packages,
       instance, "table", manifest, inputs, details, threads, shards, vector_length, dtype, created,
       run_id
FROM provenance.manifest
