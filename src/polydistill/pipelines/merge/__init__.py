"""The pipeline of a merge recipe."""
