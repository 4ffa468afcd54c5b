-- What fine-tuning says of the label of every example, by `cross_fitting`. Out of sample, of the
-- model that was not trained on the row: the predicted class, the loss and the margin of the given
-- label. In training, means over the `n_trainings` that the row was part of: the area under the
-- margin, the loss after one epoch (NULL where there is one), and how often it was forgotten.
WITH seen AS (
    SELECT example_id, avg(area_under_margin) AS area_under_margin, avg(early_loss) AS early_loss,
           avg(forgotten) AS forgotten, count(*) AS n_trainings, method, run_id
    FROM tables.training_dynamics
    GROUP BY ALL
), predicted AS (
    SELECT id, method, logits, list_max(logits) AS top,
           list_sum([exp(x - list_max(logits)) for x in logits]) AS total
    FROM tables.prediction
    WHERE source = 'cross_fitting'
)
SELECT s.method, s.example_id, g.label_name AS given_label, c.label_name AS predicted_label,
       ln(p.total) + p.top - p.logits[l.label + 1] AS loss,
       p.logits[l.label + 1] - list_max([x for x, i in p.logits if i <> l.label + 1]) AS margin,
       s.area_under_margin, s.early_loss, s.forgotten, s.n_trainings, s.run_id
FROM seen AS s
JOIN predicted AS p ON p.id = s.example_id AND p.method = s.method
JOIN tables.label AS l ON l.id = s.example_id AND l.role = 'example'
JOIN provenance.class AS g ON g.label = l.label
JOIN provenance.class AS c ON c.label = list_position(p.logits, p.top) - 1
