"""The cooperative game of examples: regressions on coalitions, utilities, sampled marginals."""
