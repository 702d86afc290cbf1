"""Benchmarks: each measures a ratio between two things, alternately, in one run."""
