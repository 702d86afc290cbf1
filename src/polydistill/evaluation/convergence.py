"""How much sooner one training comes to the loss at which another ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from polydistill.disk import read_json

# Of a training's steps; over less a loss is noise, over more it lags behind itself.
WINDOW_SHARE = 0.1


class Curve(NamedTuple):
    """A training's log.

    steps   rising
    losses  one each, the mean since the step before
    """

    steps: Sequence[float]
    losses: Sequence[float]


class Reached(NamedTuple):
    """That a training came to another's final loss.

    step    of its own, the first at which it had it
    factor  the other's steps for one of these: 2 is half the steps
    """

    step: float
    factor: float


def loss_curve(folder: Path) -> Curve | None:
    """The loss on the text's own tokens while a run trained its student or model; None if it trains none.

    folder  the run's
    """
    path = folder / "student" / "log.json"
    log = read_json(path, dict).get("log", []) if path.is_file() else []
    entries = [entry for entry in log if "mlm_loss" in entry]
    return Curve([one["step"] for one in entries], [one["mlm_loss"] for one in entries]) if entries else None


def trailing_losses(curve: Curve, window: float) -> list[float]:
    """[len(steps)] the mean of the losses logged within so many steps, each step's own included."""
    means = []
    for end, step in enumerate(curve.steps):
        so_far = zip(curve.steps[: end + 1], curve.losses[: end + 1], strict=True)
        within = [loss for at, loss in so_far if at > step - window]
        means.append(sum(within) / len(within))
    return means


def reached(curve: Curve, other: Curve) -> Reached | None:
    """Where a training first has the loss at which another one ends, both as means over a tenth of the other's steps; None if nowhere."""
    window = WINDOW_SHARE * other.steps[-1]
    level = trailing_losses(other, window)[-1]
    for step, loss in zip(curve.steps, trailing_losses(curve, window), strict=True):
        # Before the first window is full its mean is not of as many steps as the level.
        if step >= window and loss <= level:
            return Reached(step, other.steps[-1] / step)
    return None


def compared(curves: Mapping[str, Curve]) -> dict[str, dict[str, Reached | None]]:
    """Training → each other one → where it reaches that one's final loss. Only losses on the same text and pieces are to be compared."""
    return {
        name: {other: reached(curve, rest) for other, rest in curves.items() if other != name}
        for name, curve in curves.items()
    }
