"""Evaluation on held-out text."""

from polydistill.evaluation.mlm import (
    Measures,
    guesses,
    mean_reciprocal_rank,
    measure,
    ranks_of,
    unigram_ranks,
)
from polydistill.evaluation.uncertainty import Difference, paired_difference, standard_error

__all__ = [
    "Difference", "Measures", "guesses", "mean_reciprocal_rank", "measure", "paired_difference", "ranks_of",
    "standard_error", "unigram_ranks",
]  # fmt: skip
