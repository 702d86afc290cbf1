"""How much sooner one training reaches another's final loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from polydistill.disk import read_json

# Share of a training's steps over which losses are averaged: less is noise, more lags behind.
WINDOW_SHARE = 0.1


class Curve(NamedTuple):
    """A training's log.

    steps   ascending
    losses  one per step, the mean since the previous one
    """

    steps: Sequence[float]
    losses: Sequence[float]


class Reached(NamedTuple):
    """The point where a training reaches another's final loss.

    step    the first of its own steps with that loss
    factor  the other's steps divided by `step`: 2 means half the steps
    """

    step: float
    factor: float


def loss_curve(folder: Path) -> Curve | None:
    """The MLM loss during a run's training; None if the run trains nothing.

    folder  of the run
    """
    path = folder / "student" / "log.json"
    log = read_json(path, dict).get("log", []) if path.is_file() else []
    entries = [entry for entry in log if "mlm_loss" in entry]
    return Curve(*([entry[key] for entry in entries] for key in ("step", "mlm_loss"))) if entries else None


def trailing_losses(curve: Curve, window: float) -> list[float]:
    """[len(steps)] the mean of the losses logged in the last `window` steps, each step's own included."""
    means = []
    for end, step in enumerate(curve.steps):
        so_far = zip(curve.steps[: end + 1], curve.losses[: end + 1], strict=True)
        within = [loss for at, loss in so_far if at > step - window]
        means.append(sum(within) / len(within))
    return means


def reached(curve: Curve, other: Curve) -> Reached | None:
    """Where a training first has another's final loss; None if nowhere.

    Both losses are means over a tenth of the other's steps.
    """
    window = WINDOW_SHARE * other.steps[-1]
    level = trailing_losses(other, window)[-1]
    for step, loss in zip(curve.steps, trailing_losses(curve, window), strict=True):
        # Before the first window is full, its mean covers fewer steps than the level.
        if step >= window and loss <= level:
            return Reached(step, other.steps[-1] / step)
    return None


def compared(curves: Mapping[str, Curve]) -> dict[str, dict[str, Reached | None]]:
    """Training → each other one → where it reaches that one's final loss.

    Losses are comparable only on the same text and pieces.
    """
    return {
        name: {other: reached(curve, rest) for other, rest in curves.items() if other != name}
        for name, curve in curves.items()
    }
