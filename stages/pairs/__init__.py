"""Stages that score pairs of a query and an example."""
