-- The tokens to be explained: those that the model wrote after a query's text, or read in it.
SELECT method, query_id, token_index, token, probability, tf_idf, context, logit, token_id, run_id
FROM tables.continuation
