"""Stages that write a vector per row."""
