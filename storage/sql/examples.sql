-- The training rows, with the labels under which they are valued and without dropped rows. A row of
-- a regression has a target and no label, a completion neither.
SELECT t.id AS example_id, x.source_id, t.text, l.label, c.label_name,
       (SELECT split FROM provenance.split WHERE role = 'example') AS split, s.shard, l.target,
       t.text_b, l.true_label, l.label_before_review,
       x.* EXCLUDE (id, role, source_id, method, run_id, assay_file), t.run_id
FROM tables.text AS t
JOIN tables.label AS l ON l.id = t.id
JOIN tables.extra AS x ON x.id = t.id
JOIN provenance.shard AS s ON s.assay_file = t.assay_file
LEFT JOIN provenance.class AS c ON c.label = l.label
WHERE t.role = 'example' AND l.role = 'example' AND x.role = 'example'
