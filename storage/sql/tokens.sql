-- How much each token of a query raises the output that is explained, by every token method. A token
-- of an output has one row; `word_score` is the sum over its word. Characters count in `text_column`.
SELECT method, query_id, token_index, token, char_start, char_end, score, output, text_column,
       word_index, word_score, run_id
FROM tables.token
