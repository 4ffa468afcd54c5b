-- How likely every answer of a corpus of completions is bad, and why: `reason` is the likeliest,
-- `p_reason` its probability if the answer is bad.
SELECT method, example_id, p_wrong, reason, p_reason, is_answer_issue, run_id
FROM tables.answer_issue
