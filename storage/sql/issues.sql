-- What may be wrong with an example beside its label, a row per example and issue: texts that stand
-- in the corpus more than once, with the same label or another one, or among the queries; texts
-- without a letter or digit; classes with less than a tenth of an even share. Texts are compared
-- without case and spacing; `other_id` is another row of `other_role` with the same text, and with
-- another label where there is one.
WITH form AS (
    -- Rows that are vectors alone have empty texts, which say nothing.
    SELECT coalesce(bool_and(json_extract(details, '$.has_text')::BOOLEAN), true) AS has_text
    FROM provenance.manifest
    WHERE "table" = 'text'
), kept AS (
    SELECT t.id, t.role, t.run_id, coalesce(l.label::DOUBLE, l.target) AS answer, t.text, t.text_b,
           md5_number(bare_text(t.text, t.text_b)) AS content
    FROM tables.text AS t
    JOIN tables.label AS l ON l.id = t.id AND l.role = t.role
    WHERE t.text IS NOT NULL AND (SELECT has_text FROM form)
), same AS (
    SELECT content, min(id) FILTER (role = 'example') AS first_id,
           max(id) FILTER (role = 'example') AS last_id,
           min(id) FILTER (role = 'query') AS query_id,
           min(answer) FILTER (role = 'example') AS least,
           max(answer) FILTER (role = 'example') AS most,
           arg_min(id, (answer, id)) FILTER (role = 'example' AND answer IS NOT NULL) AS low_id,
           arg_min(id, (-answer, id)) FILTER (role = 'example' AND answer IS NOT NULL) AS high_id
    FROM kept
    GROUP BY content
    HAVING count(*) > 1
), share AS (
    SELECT label, count(*) * (count(*) OVER ()) * 10 < sum(count(*)) OVER () AS is_rare
    FROM tables.label
    WHERE role = 'example' AND label IS NOT NULL
    GROUP BY label
)
SELECT id AS example_id,
       CASE WHEN least < most AND answer IS NOT NULL THEN 'duplicate with another label'
            ELSE 'duplicate' END AS issue,
       CASE WHEN least < most AND answer = least THEN high_id
            WHEN least < most AND answer IS NOT NULL THEN low_id
            WHEN id = first_id THEN last_id ELSE first_id END AS other_id,
       'example' AS other_role, NULL::BIGINT AS n_answers, run_id
FROM kept JOIN same USING (content)
WHERE role = 'example' AND first_id < last_id
UNION ALL
SELECT id, 'also a query', query_id, 'query', NULL, run_id
FROM kept JOIN same USING (content)
WHERE role = 'example' AND query_id IS NOT NULL
UNION ALL
SELECT id, 'no words', NULL, NULL, NULL, run_id
FROM kept
WHERE role = 'example'
  AND NOT regexp_matches(concat_ws(' ', text, text_b), '[\p{L}\p{N}]')
UNION ALL
SELECT l.id, 'rare class', NULL, NULL, NULL, l.run_id
FROM tables.label AS l JOIN share USING (label)
WHERE l.role = 'example' AND is_rare
