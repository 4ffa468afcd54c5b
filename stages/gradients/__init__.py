"""Per-example gradients, projected to short vectors, and sums of their outer products."""
