"""Kinds of models, a file for each: `head:` of a model names one."""
