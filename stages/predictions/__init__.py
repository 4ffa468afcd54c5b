"""Stages that write an output per row: predictions, label issues, answers, continuations."""
