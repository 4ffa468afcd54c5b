-- The language of each text (ISO 639-1), and whether that is beyond doubt: short texts tell little.
SELECT id, role, method, language, p_language, n_characters,
       language IS NOT NULL AND p_language >= 0.9 AND n_characters >= 40 AS is_sure, run_id
FROM tables.language
