"""The pipeline of a balance recipe."""
