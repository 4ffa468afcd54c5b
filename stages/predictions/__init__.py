"""Stages that write predictions: logits, probes, label issues, answers and continuations."""
