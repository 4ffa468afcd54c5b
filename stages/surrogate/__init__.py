"""Surrogate models that stand for the network: kernel regressions and linear heads."""
