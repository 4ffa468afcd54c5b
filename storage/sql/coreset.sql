-- The order of examples in which any first part trains well, with the fall of the surrogate's loss.
SELECT c.method, c.example_id, l.label, n.label_name, c.rank, c.gain, c.is_taken, c.run_id
FROM tables.coreset AS c
JOIN tables.label AS l ON l.id = c.example_id AND l.role = 'example'
LEFT JOIN provenance.class AS n ON n.label = l.label
