"""Benchmarks. Each measures a ratio between two things that take turns in one run."""
