"""Stages that score pairs of a query and an example, and support spectra of predictions."""
