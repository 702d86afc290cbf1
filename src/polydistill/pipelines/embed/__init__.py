"""The pipeline of an embed recipe."""
