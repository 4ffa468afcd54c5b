-- How much each token of a query raises the explained output, by every token method: one row for a
-- token and output. `word_score` is the sum over its word; `char_start` counts in `text_column`.
SELECT method, query_id, token_index, token, char_start, char_end, score, output, text_column,
       word_index, word_score, run_id
FROM tables.token
