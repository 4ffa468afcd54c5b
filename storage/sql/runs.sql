-- One row per table of the run: the stage that wrote it, its fields, inputs, packages and cost.
SELECT stage, version, fields, model, revision, seed, rows, bytes, seconds, packages,
       instance, "table", manifest, inputs, details, threads, shards, vector_length, dtype, created,
       run_id
FROM provenance.manifest
