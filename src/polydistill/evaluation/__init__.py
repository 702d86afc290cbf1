"""Evaluation on held-out text."""

from polydistill.evaluation.mlm import (
    Measures,
    guesses,
    mean_reciprocal_rank,
    measure,
    measure_logits,
    ranks_of,
    unigram_ranks,
)
from polydistill.evaluation.uncertainty import Difference, paired_difference, standard_error
from polydistill.tasks.probes import Probe, fit_probe, score_tags
from polydistill.tasks.words import Window, split_into_windows, word_features

__all__ = [
    "Difference", "Measures", "Probe", "Window", "fit_probe", "guesses", "mean_reciprocal_rank", "measure",
    "measure_logits", "paired_difference", "ranks_of", "score_tags", "split_into_windows", "standard_error", "unigram_ranks",
    "word_features",
]  # fmt: skip
