"""Columns of tables as arrays, and arrays as rows of tables."""
