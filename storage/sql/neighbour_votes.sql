-- What the nearest neighbours say of every given label: the class most of them have, the share that
-- has the given one, a score in [0, 1] (low = suspicious), and the flags by vote and by rank.
SELECT n.method, n.example_id, g.label_name AS given_label, v.label_name AS voted_label, n.share,
       n.label_score, n.is_outvoted, n.is_low_ranked, n.run_id
FROM tables.neighbour_vote AS n
JOIN provenance.class AS g ON g.label = n.given_label
JOIN provenance.class AS v ON v.label = n.voted_label
