"""Stages that value examples."""
