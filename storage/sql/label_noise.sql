-- How labels are expected to be wrong, by pairs of classes: at which rate rows of a class were given
-- each label, and how many rows that is. A class with itself is a pair, too: the right labels.
SELECT n.method, c.label_name AS class, g.label_name AS given_label, n.rates[g.label + 1] AS rate,
       n.expected[g.label + 1] AS expected, n.run_id
FROM tables.noise_rate AS n
JOIN provenance.class AS c ON c.label = n.label
CROSS JOIN provenance.class AS g
