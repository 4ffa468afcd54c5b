-- How much each example raises the measured output of a query, by every pairwise method: above 0 it
-- helps. Of a query the largest and the smallest scores, or all if `top_k` of the method is null.
-- Methods that read no labels keep the rows of examples that a review dropped.
SELECT method, query_id, example_id, score, run_id
FROM tables.attribution
