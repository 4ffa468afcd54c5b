"""Per-example gradients, projected to short vectors."""
