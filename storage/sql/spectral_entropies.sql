-- How evenly the gradient of an answer's loss is spread over directions, between 0 and 1.
SELECT example_id, method, spectral_entropy, n_tokens, run_id
FROM tables.spectral_entropy
