"""Means and differences over seeds and test items, with intervals that know both.

Two levels: a mean over seeds of scores on the same items varies because other seeds would have been drawn,
and because other items would. Items are resampled (bootstrap, the same draw for all variants and seeds).
Seeds enter by Student's t with a deviation that is pooled over variants, because resampling two or three of
them covers too little. The two half-intervals add like the sides of a right angle (decision 23).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.tasks.scores import SeedNoise, seed_noise

Floats = npt.NDArray[np.float64]
Knows = Literal["nothing", "items", "seeds", "seeds and items"]

# p-values below twice this are not told apart.
SMALLEST_TAIL = 1e-12


class Estimate(NamedTuple):
    """A mean or a difference of means, with its interval.

    p      two-sided p-value of the value being 0
    knows  what the interval reflects
    """

    value: float
    low: float
    high: float
    p: float
    knows: Knows


class Variant(NamedTuple):
    """A variant's scores.

    scores   [S] one per seed, in the same order of seeds for all variants
    samples  [B, S] each seed's score on B bootstrap samples of the items; None if items are not known
    items    number of items; 0 if they are not known
    joint    whether all seeds were scored on the same items, and so on the same samples
    """

    scores: Floats
    samples: Floats | None = None
    items: int = 0
    joint: bool = True


def paired_noise(scores: Floats) -> SeedNoise:
    """Deviation between seeds of a difference of two variants, from all variants together.

    scores  [V, S] of V variants with the same S seeds
    Two-way analysis of variance: what a seed does to all variants alike cancels in differences, and the rest
    has (V - 1)(S - 1) degrees of freedom. With two variants it is the deviation of the paired differences.
    """
    variants, seeds = scores.shape
    if variants < 2 or seeds < 2:
        return SeedNoise(0.0, 0)
    rest = scores - scores.mean(1, keepdims=True) - scores.mean(0, keepdims=True) + scores.mean()
    freedom = (variants - 1) * (seeds - 1)
    return SeedNoise(float(np.sqrt(2 * (rest**2).sum() / freedom)), freedom)


def level_estimates(variants: Mapping[str, Variant], *, level: float) -> dict[str, Estimate]:
    """Each variant's mean over seeds."""
    noise = seed_noise([variant.scores.tolist() for variant in variants.values()], trainings=len(variants))
    return {name: _estimate(variant, noise, level) for name, variant in variants.items()}


def difference_estimates(
    variants: Mapping[str, Variant], reference: str, *, level: float
) -> dict[str, Estimate]:
    """Each other variant's mean minus the reference's, paired by seed and by item."""
    first = variants[reference]
    noise = paired_noise(np.stack([variant.scores for variant in variants.values()]))
    return {
        name: _estimate(_minus(variant, first), noise, level)
        for name, variant in variants.items()
        if name != reference
    }


def _minus(one: Variant, other: Variant) -> Variant:
    both = one.samples is not None and other.samples is not None
    return Variant(
        one.scores - other.scores,
        one.samples - other.samples if both else None,  # type: ignore[operator]
        min(one.items, other.items),
        one.joint and other.joint,
    )


def _estimate(variant: Variant, noise: SeedNoise, level: float) -> Estimate:
    # Imported here, for it takes a second, which every command would wait for.
    from scipy import stats

    value, seeds = float(variant.scores.mean()), len(variant.scores)
    # (Standard error, degrees of freedom.)
    parts: list[tuple[float, int]] = []
    if variant.samples is not None and variant.items > 1:
        # Not the same items: their errors may still go together, as where only masks differ.
        deviation = variant.samples.mean(1).std() if variant.joint else variant.samples.std(0).mean()
        parts.append((float(deviation), variant.items - 1))
    if seeds > 1 and noise.freedom:
        parts.append((noise.deviation / seeds**0.5, noise.freedom))
    known: tuple[Knows, Knows, Knows, Knows] = ("nothing", "items", "seeds", "seeds and items")
    knows = known[(variant.samples is not None and variant.items > 1) + 2 * (seeds > 1)]
    if not any(error for error, _ in parts):
        # No variation: certain where something was known, else unknown.
        return Estimate(value, value, value, 0.0 if parts and value else 1.0, knows)

    def half(tail: float) -> float:
        """Half of the interval that leaves `tail` on each side."""
        sides = [float(stats.t.isf(tail, freedom)) * error for error, freedom in parts]
        return float(np.hypot.reduce(sides))

    width = half((1 - level) / 2)
    return Estimate(value, value - width, value + width, _p_value(abs(value), half), knows)


def _p_value(distance: float, half: Callable[[float], float]) -> float:
    """Two-sided p-value: 1 minus the level of the interval that just reaches 0."""
    from scipy.optimize import brentq

    if distance == 0.0:
        return 1.0
    if half(SMALLEST_TAIL) < distance:
        return 2 * SMALLEST_TAIL
    return 2 * float(brentq(lambda tail: half(tail) - distance, SMALLEST_TAIL, 0.5, xtol=1e-15))
