-- Log-likelihoods of both answers of a pair by the model (policy) and the reference, in nats, with
-- the margin and loss of DPO. `margin` is that of the policy alone, `mean_margin` the same per token.
SELECT id, role, chosen_logp - rejected_logp AS margin,
       chosen_logp / chosen_tokens - rejected_logp / rejected_tokens AS mean_margin, reward_margin,
       loss, chosen_tokens, rejected_tokens, chosen_logp, rejected_logp, reference_chosen_logp,
       reference_rejected_logp, method, run_id
FROM tables.answer_margin
