-- How many tokens a row has, and how many of them are read: the others are cut off.
SELECT id, role, method, n_tokens, max_length, n_tokens > max_length AS is_cut, run_id
FROM tables.text_length
