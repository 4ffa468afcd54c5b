-- The rows whose predictions matter; a label, or the target of a regression, may be NULL.
SELECT t.id AS query_id, x.source_id, t.text, l.label, c.label_name,
       (SELECT split FROM provenance.split WHERE role = 'query') AS split, s.shard, l.target,
       t.text_b, x.* EXCLUDE (id, role, source_id, method, run_id, assay_file), t.run_id
FROM tables.text AS t
JOIN tables.label AS l ON l.id = t.id
JOIN tables.extra AS x ON x.id = t.id
JOIN provenance.shard AS s ON s.assay_file = t.assay_file
LEFT JOIN provenance.class AS c ON c.label = l.label
WHERE t.role = 'query' AND l.role = 'query' AND x.role = 'query'
