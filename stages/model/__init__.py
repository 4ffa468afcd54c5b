"""Models: loading networks, tokenizing rows, batches, measurement and training."""
