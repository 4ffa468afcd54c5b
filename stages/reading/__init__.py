"""Rows of tables as arrays, and back."""
