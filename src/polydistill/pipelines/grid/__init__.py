"""The pipeline of a grid recipe."""
