"""Scoring: a teacher's soft labels for a language's examples, computed once."""

from polydistill.scoring.local import score
from polydistill.scoring.predict import Predictions, predict
from polydistill.scoring.shards import HasTexts, Job

__all__ = ["HasTexts", "Job", "Predictions", "predict", "score"]
