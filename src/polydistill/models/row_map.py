"""Maps from one model's embedding space into another's, fitted on the pieces that both have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

RowMap = Literal["kernel", "orthogonal", "least_squares", "mean"]

# A map is fitted on shared pieces; with fewer than this it would be noise.
MIN_SHARED_PIECES = 64
# A kernel map solves a system as large as its number of pieces: at most so many.
MAX_ANCHORS = 4096
# Kernel map: exp(KERNEL_WIDTH * (cosine - 1)), and what is added to the kernel's diagonal.
KERNEL_WIDTH, KERNEL_RIDGE = 4.0, 0.2
# Rows that are mapped at once.
_CHUNK = 8192


def fit_map(source: Tensor, target: Tensor, rows: Tensor, row_map: RowMap) -> tuple[Tensor, dict[str, float]]:
    """Map rows by a fit of source → target; returns the rows, and the fit's quality on a held-out tenth.

    source, target  [n, d], [n, e] rows of the shared pieces in both spaces
    rows            [m, d] the rows to map
    row_map         `kernel`: kernel ridge regression, whose kernel falls with the angle between rows: near
                    pieces go to near places, which no linear map of few directions can do.
                    `orthogonal`: the scaled rotation that is best in least squares (Procrustes; Schönemann
                    1966). `least_squares`: ridge regression
    Returns [m, e] rows, rescaled to the target's spread, for regression shrinks towards the mean.
    """
    if row_map == "kernel" and len(source) > MAX_ANCHORS:
        chosen = torch.linspace(0, len(source) - 1, MAX_ANCHORS).long()
        source, target = source[chosen], target[chosen]
    mean_in, mean_out = source.mean(0), target.mean(0)
    fit = {"kernel": _kernel, "orthogonal": _orthogonal}.get(row_map, _least_squares)
    left = torch.arange(len(source)) % 10 == 0
    x, y = source - mean_in, target - mean_out
    held_out = fit(x[~left], y[~left])(x[left])
    cosine = torch.nn.functional.cosine_similarity(held_out, y[left], dim=-1).mean()
    apply = fit(x, y)
    mapped = torch.cat([apply(part - mean_in) for part in rows.split(_CHUNK)])
    spread = y.std() / mapped.std().clamp(min=1e-9)
    return mapped * spread + mean_out, {"held_out_cosine": float(cosine), "stretch": float(spread)}


def _kernel(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    anchors = torch.nn.functional.normalize(x, dim=-1)

    def kernel(rows: Tensor) -> Tensor:
        return torch.exp(KERNEL_WIDTH * (torch.nn.functional.normalize(rows, dim=-1) @ anchors.t() - 1))

    system = kernel(x) + KERNEL_RIDGE * torch.eye(len(x), dtype=x.dtype)
    weights = torch.linalg.solve(system, y)
    return lambda rows: kernel(rows) @ weights


def _orthogonal(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    u, singular, v = torch.linalg.svd(x.t() @ y, full_matrices=False)
    rotation = u @ v
    scaled = rotation * (singular.sum() / (x @ rotation).square().sum())
    return lambda rows: rows @ scaled


def _least_squares(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    ridge = 0.1 * x.square().sum() / x.shape[1]
    regularised = x.t() @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    solution = torch.linalg.solve(regularised, x.t() @ y)
    return lambda rows: rows @ solution
