-- How suspicious every given label is (score in [0, 1], low = suspicious), the label suggested
-- instead, whether it is flagged, and the signals behind the score.
SELECT i.method, i.example_id, g.label_name AS given_label, s.label_name AS suggested_label,
       i.label_score, i.is_label_issue, i.p_wrong, i.margin, i.confidence, i.run_id
FROM tables.label_issues AS i
JOIN provenance.class AS g ON g.label = i.given_label
JOIN provenance.class AS s ON s.label = i.suggested_label
