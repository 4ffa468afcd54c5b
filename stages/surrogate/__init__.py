"""Small models that stand for the network."""
