"""Evaluation on held-out text."""

from polydistill.evaluation.mlm import (
    Measures,
    mean_reciprocal_rank,
    measure,
    measure_logits,
    ranks_of,
    unigram_ranks,
)
from polydistill.evaluation.uncertainty import Difference, paired_difference, standard_error

__all__ = [
    "Difference",
    "Measures",
    "mean_reciprocal_rank",
    "measure",
    "measure_logits",
    "paired_difference",
    "ranks_of",
    "standard_error",
    "unigram_ranks",
]
