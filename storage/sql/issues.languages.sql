-- Texts that are beyond doubt in a language of fewer than one in fifty of such texts.
SELECT id AS example_id, 'another language' AS issue, NULL::BIGINT AS other_id, NULL AS other_role, run_id
FROM (SELECT t.*
      FROM tables.language AS t
      JOIN tables.label AS l ON l.id = t.id AND l.role = t.role
      WHERE t.role = 'example' AND language IS NOT NULL AND p_language >= 0.9 AND n_characters >= 40
      QUALIFY count(*) OVER (PARTITION BY t.method, language) * 50 < count(*) OVER (PARTITION BY t.method))
