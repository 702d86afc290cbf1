"""Schedules of a loss's weight."""

from __future__ import annotations

import math
from typing import Literal


def scheduled_weight(
    progress: float, *, first: float, last: float, schedule: Literal["linear", "cosine", "constant"]
) -> float:
    """A weight at a share of the training steps.

    For teachers' labels this is teacher annealing (Clark et al. 2019, section 3.2).

    progress  steps done / all steps, in [0, 1]
    """
    if schedule == "constant":
        return first
    share = progress if schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return first + (last - first) * share
