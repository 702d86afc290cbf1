"""What sentence vectors are worth: cosine with a teacher's, retrieval of translations, similarity scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

Rows = npt.NDArray[np.float32]
# Cosines that differ by less are equal: vectors of equal sentences differ by rounding, because the batches
# that they were computed in have other shapes.
SAME = 1e-6


def cosines(first: Rows, second: Rows) -> npt.NDArray[np.float64]:
    """[N] the cosine of each pair of rows of [N, D]; 0 with a vector of zeros."""
    return np.asarray((_unit(first) * _unit(second)).sum(1))


def retrieval_accuracy(source: Rows, target: Rows) -> float:
    """The share of rows i of `source` whose nearest row of `target` by cosine is row i.

    source, target  [N, D] vectors of N parallel sentences
    Rows that are equally near share the hit, so that constant vectors are at chance, 1/N.
    """
    similarity = _unit(source) @ _unit(target).T
    nearest = similarity >= similarity.max(1, keepdims=True) - SAME
    return float((nearest.diagonal() / nearest.sum(1)).mean())


def rank_correlation(first: Rows, second: Rows, scores: npt.NDArray[np.float64]) -> float | None:
    """Spearman's correlation of the cosines of pairs of rows with their scores; None for constant ones."""
    values = cosines(first, second)
    if np.ptp(values) < SAME or np.ptp(scores) == 0:
        return None
    return float(spearmanr(values, scores).statistic)


def _unit(rows: Rows) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(np.divide(wide, length, out=np.zeros_like(wide), where=length > 0))
