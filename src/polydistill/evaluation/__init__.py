"""Evaluation on held-out text."""

from polydistill.evaluation.mlm import (
    Measures,
    guesses,
    mean_reciprocal_rank,
    measure,
    ranks_of,
    unigram_ranks,
)

__all__ = ["Measures", "guesses", "mean_reciprocal_rank", "measure", "ranks_of", "unigram_ranks"]
