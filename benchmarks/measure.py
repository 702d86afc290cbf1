"""Medians over rounds in which things run in turn, and the machine's peak."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from polydistill.models.precision import device, resolve_dtype


def alternate(things: dict[str, Callable[[], object]], *, rounds: int = 5) -> dict[str, float]:
    """Median seconds of each thing over rounds in which all run in turn, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for index in range(rounds + 1):
        for name, work in things.items():
            started = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if index:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_products(size: int = 2048, repeats: int = 5) -> float:
    """Operations per second of a large square matrix product, an upper bound for training; best of `repeats`.

    In bfloat16 if the machine multiplies it in hardware.
    """
    where = device()
    dtype = resolve_dtype("auto")
    left, right = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):
        started = time.perf_counter()
        left @ right
        if where.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
