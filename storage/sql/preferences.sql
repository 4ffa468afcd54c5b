-- Prompts and both answers of a corpus of preferences as people read them. Of conversations these are
-- the contents of messages, several of them with their roles.
WITH form AS (
    SELECT json_extract_string(details, '$.format') AS form
    FROM provenance.manifest
    WHERE "table" = 'text'
    LIMIT 1
)
SELECT id, role,
       CASE form WHEN 'preference' THEN text ELSE turns_said(text) END AS prompt,
       CASE form WHEN 'preference' THEN text_b ->> '$.chosen'
            ELSE turns_said(text_b -> '$.chosen') END AS chosen,
       CASE form WHEN 'preference' THEN text_b ->> '$.rejected'
            ELSE turns_said(text_b -> '$.rejected') END AS rejected,
       run_id
FROM tables.text CROSS JOIN form
WHERE text IS NOT NULL
