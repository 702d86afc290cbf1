"""The pipeline of a extract recipe."""
