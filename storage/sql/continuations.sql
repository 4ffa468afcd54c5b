-- A token that the model wrote, or has read, behind a query's text, and that is to be explained.
SELECT method, query_id, token_index, token, probability, tf_idf, context, logit, token_id, run_id
FROM tables.continuation
