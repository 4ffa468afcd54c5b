-- The subsets of the examples that a model was trained on, in the order in which they joined.
SELECT round, subset, size, example_ids, method, run_id
FROM tables.subset
