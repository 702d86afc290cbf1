"""The pipeline of a probe recipe."""
