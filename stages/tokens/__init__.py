"""Stages that score the tokens of a query."""
