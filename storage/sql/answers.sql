-- The answer that a question-answering model gives to each question, and its place in the text; the
-- columns of the source, such as known answers, are in `examples` and `queries`.
SELECT a.id, a.role, t.text_b AS question, a.answer, a.probability, a.char_start, a.char_end,
       a.token_start, a.token_end, a.logit, a.method, a.run_id
FROM tables.answer AS a
JOIN tables.text AS t ON t.id = a.id AND t.role = a.role
