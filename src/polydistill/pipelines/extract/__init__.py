"""The pipeline of an extract recipe."""
