"""Verdicts on differences: a margin of equivalence stated beforehand, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

# A 95 % interval's width in standard deviations of a normal distribution.
WIDTH_95 = 2 * 1.959964

Verdict = Literal["level", "better", "worse", "not settled"]


def verdict(low: float, high: float, margin: float | None, *, excludes_zero: bool | None = None) -> Verdict:
    """What an interval says of a difference.

    margin         of equivalence, in the interval's unit: `level` if the whole interval lies within it, also
                   where it excludes 0; None: nothing is level
    excludes_zero  whether the difference counts as one after a correction for many comparisons; None: if the
                   interval excludes 0
    """
    if margin is not None and -margin <= low and high <= margin:
        return "level"
    differs = low > 0 or high < 0
    if not differs or excludes_zero is False:
        return "not settled"
    return "better" if low > 0 else "worse"


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979), in the given order.

    Those at most alpha reject their hypotheses with a probability of any wrong rejection of at most alpha,
    however the tests depend on each other.
    """
    adjusted = [0.0] * len(values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = highest
    return adjusted


def starred(differences: Sequence[Mapping[str, float]]) -> list[bool]:
    """Which differences of one table differ from 0 at 5 % after Holm's correction for all of them.

    differences  `value`, and `low` and `high` of its 95 % interval, whose width gives the p-value (normal)
    One that its own interval does not tell from 0 is never starred.
    """
    values = []
    for cell in differences:
        error = (cell["high"] - cell["low"]) / WIDTH_95
        distance = abs(cell["value"])
        values.append(math.erfc(distance / error / math.sqrt(2)) if error else float(distance == 0.0))
    alone = len(values) == 1
    return [
        (cell["low"] > 0 or cell["high"] < 0) and (alone or adjusted <= 0.05)
        for cell, adjusted in zip(differences, holm(values), strict=True)
    ]
