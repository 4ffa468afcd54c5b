-- How likely every answer of a corpus of completions is bad, and why: `reason` is the likeliest,
-- `p_reason` its probability if the answer is bad. Of answers that many rows share, `p_other_class` is
-- how likely another of them is the right one; it decides nothing.
SELECT method, example_id, p_wrong, reason, p_reason, is_answer_issue, p_other_class, run_id
FROM tables.answer_issue
