-- What the model, the probe and the kernel regression say of every row. The kernel's logits are
-- the raw regression outputs; those of training rows are leave-one-out, hence out of sample.
WITH softmax AS (
    SELECT *, list_max(logits) AS top,
           list_sum([exp(x - list_max(logits)) for x in logits]) AS total
    FROM tables.prediction
), ranked AS (
    SELECT *, list_position(logits, top) - 1 AS predicted, list_reverse_sort(logits) AS sorted
    FROM softmax
)
SELECT r.id, r.role, r.source, r.predicted, c.label_name AS predicted_name,
       1 / r.total AS confidence, r.sorted[1] - r.sorted[2] AS margin,
       ln(r.total) + r.top - r.logits[l.label + 1] AS loss, r.logits, r.method, r.run_id
FROM ranked AS r
LEFT JOIN tables.label AS l ON l.id = r.id AND l.role = r.role
LEFT JOIN provenance.class AS c ON c.label = r.predicted
