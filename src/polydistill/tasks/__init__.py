"""Labelled tasks: data, heads, fine-tuning, probes and scores."""

from polydistill.tasks.heads import load_with_head
from polydistill.tasks.probes import Probe, fit_probe, score_tags
from polydistill.tasks.training import fine_tune
from polydistill.tasks.words import Window, split_into_windows, word_features

__all__ = [
    "Probe",
    "Window",
    "fine_tune",
    "fit_probe",
    "load_with_head",
    "score_tags",
    "split_into_windows",
    "word_features",
]
