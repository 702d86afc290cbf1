"""Uncertainty of a mean over masked tokens. An example's tokens are correlated, so examples are resampled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NUM_SAMPLES = 2000


class Difference(NamedTuple):
    """The difference of two means, with the interval of 95 % of its bootstrap samples."""

    value: float
    low: float
    high: float

    @property
    def settled(self) -> bool:
        """Whether the interval excludes 0. It reflects sampling of the text, not variation between seeds."""
        return self.low > 0 or self.high < 0


def standard_error(values: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> float:
    """Standard error of the mean over tokens, with examples as sampling units (linearised ratio estimate).

    values  [M] one number per token, in the order of examples
    counts  [E] tokens of each example
    """
    if len(counts) < 2 or not len(values):
        return 0.0
    sums = _sums(values, counts)
    residuals = sums - values.mean() * counts
    return float(np.sqrt((residuals**2).sum() * len(counts) / (len(counts) - 1)) / counts.sum())


def paired_difference(
    ones: npt.NDArray[np.float64],
    others: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    *,
    seed: int = 0,
) -> Difference:
    """Mean of `ones` minus mean of `others`, two models' values on the same tokens, by paired bootstrap.

    ones, others  [M]; counts [E] tokens of each example
    Raises ValueError if the values are not of the same tokens.
    """
    if len(ones) != len(others) or len(ones) != counts.sum():
        raise ValueError("the values are not of the same tokens")
    return paired_ratio(_sums(ones - others, counts), counts, seed=seed)


def paired_ratio(
    differences: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64], *, seed: int = 0
) -> Difference:
    """Sum of differences [E] over sum of sizes [E] of examples, by bootstrap over examples."""
    generator = np.random.default_rng(seed)
    samples = np.empty(NUM_SAMPLES)
    for index in range(NUM_SAMPLES):
        drawn = generator.integers(0, len(sizes), len(sizes))
        samples[index] = differences[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(samples, (0.025, 0.975))
    return Difference(float(differences.sum() / sizes.sum()), float(low), float(high))


def _sums(values: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """[E] sum of each example's values."""
    totals = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.cumsum(counts)
    return np.asarray(totals[ends] - totals[ends - counts])
