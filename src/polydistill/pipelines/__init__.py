"""Pipelines: one for each kind of recipe, on shared stages."""
