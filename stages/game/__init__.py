"""The cooperative game whose players are examples, and how its coalitions are sampled."""
