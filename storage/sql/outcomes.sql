-- The prediction for every query by a model that was trained on a subset; the loss is NULL without
-- a label.
WITH softmax AS (
    SELECT *, list_max(logits) AS top,
           list_sum([exp(x - list_max(logits)) for x in logits]) AS total
    FROM tables.outcome
)
SELECT s.round, s.subset, s.size, s.query_id, list_position(s.logits, s.top) - 1 AS predicted,
       predicted = l.label AS is_correct,
       ln(s.total) + s.top - s.logits[l.label + 1] AS loss,
       s.logits[l.label + 1] - list_max([
           x for x, i in s.logits if i <> l.label + 1
       ]) AS margin,
       s.logits, s.method, s.run_id
FROM softmax AS s
LEFT JOIN tables.label AS l ON l.id = s.query_id AND l.role = 'query'
