"""Running two or more things alternately and taking medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def alternate(things: dict[str, Callable[[], object]], *, rounds: int = 5) -> dict[str, float]:
    """Median seconds of each thing over rounds in which all run in turn, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for index in range(rounds + 1):
        for name, work in things.items():
            started = time.perf_counter()
            work()
            if index:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
