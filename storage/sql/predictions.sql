-- The predictions of the model, the probe and the kernel regression for every row. The kernel's
-- logits are the raw regression outputs; those of training rows are leave-one-out, hence out of
-- sample, as are those of cross_fitting and of an ensemble, which have training rows alone. A row
-- with one output is of a regression: it has no class, and its loss is the squared error.
WITH softmax AS (
    SELECT *, list_max(logits) AS top,
           list_sum([exp(x - list_max(logits)) for x in logits]) AS total
    FROM tables.prediction
), ranked AS (
    SELECT *, len(logits) > 1 AS is_classified, list_reverse_sort(logits) AS sorted,
           CASE WHEN len(logits) > 1 THEN list_position(logits, top) - 1 END AS predicted
    FROM softmax
)
SELECT r.id, r.role, r.source, r.predicted, c.label_name AS predicted_name,
       CASE WHEN r.is_classified THEN 1 / r.total END AS confidence,
       r.sorted[1] - r.sorted[2] AS margin,
       CASE
           WHEN r.is_classified THEN ln(r.total) + r.top - r.logits[l.label + 1]
           ELSE (r.logits[1] - l.target) ** 2
       END AS loss,
       r.logits, r.method, r.run_id
FROM ranked AS r
LEFT JOIN tables.label AS l ON l.id = r.id AND l.role = r.role
LEFT JOIN provenance.class AS c ON c.label = r.predicted
