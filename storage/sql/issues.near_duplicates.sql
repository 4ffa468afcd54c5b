-- Near duplicates, but for those whose nearest text is the same as their own without case and
-- spacing. Where labels of a cluster differ, `other_id` is the nearest row if it has another label,
-- else the first with the smallest or the largest label.
WITH near AS (
    SELECT d.example_id, d.method, d.cluster, d.other_id, d.query_id, d.run_id,
           coalesce(own.label::DOUBLE, own.target) AS answer, bare_text(t.text, t.text_b) AS bare
    FROM tables.near_duplicate AS d
    JOIN tables.text AS t ON t.id = d.example_id AND t.role = 'example'
    JOIN tables.label AS own ON own.id = d.example_id AND own.role = 'example'
), extremes AS (
    SELECT method, cluster, min(answer) AS least, arg_min(example_id, (answer, example_id)) AS low_id,
           max(answer) AS most, arg_min(example_id, (-answer, example_id)) AS high_id
    FROM near
    WHERE answer IS NOT NULL
    GROUP BY method, cluster
), of_query AS (
    SELECT t.id, bare_text(t.text, t.text_b) AS bare
    FROM tables.text AS t
    WHERE t.role = 'query' AND t.id IN (SELECT query_id FROM near)
)
SELECT n.example_id,
       CASE WHEN least < most AND n.answer IS NOT NULL THEN 'near duplicate with another label'
            ELSE 'near duplicate' END AS issue,
       CASE WHEN n.answer IS NULL OR least = most OR other.answer <> n.answer THEN n.other_id
            WHEN n.answer = least THEN high_id ELSE low_id END AS other_id,
       'example' AS other_role, n.run_id
FROM near AS n
JOIN near AS other ON other.example_id = n.other_id AND other.method = n.method
LEFT JOIN extremes AS e ON e.cluster = n.cluster AND e.method = n.method
WHERE n.bare <> other.bare
UNION ALL
SELECT n.example_id, 'near a query', n.query_id, 'query', n.run_id
FROM near AS n JOIN of_query AS q ON q.id = n.query_id
WHERE n.bare <> q.bare
