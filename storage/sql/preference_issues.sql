-- How likely the order of every pair is wrong, and what speaks most against it; `score` is the
-- logarithm of the odds that it is right.
SELECT method, example_id, p_wrong, reason, score, is_preference_issue, run_id
FROM tables.preference_issue
