"""Soft targets from a teacher's stored predictions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Tail = Literal["renormalise", "bucket", "raw", "gold"]


def soft_targets(logprobs: Tensor, *, tail: Tail) -> tuple[Tensor, Tensor]:
    """([N, K] probabilities of the stored pieces, [N] probability of all others).

    logprobs  [N, K] log-probabilities under the teacher's full softmax; -inf for an empty slot
    tail      `renormalise`: the K sum to 1 (MergeDistill, step 2); `raw`: as stored, the others get 0;
              `bucket` and `gold`: the others keep their mass, which the loss gives to one extra class or to
              the gold piece

    With random and hybrid sampling the stored K sum to 1, so all settings are equal.
    """
    stored = logprobs.float()
    mass = stored.exp().sum(-1, keepdim=True)
    # float16 rounding can make the sum slightly larger than 1.
    within = mass.clamp(max=1.0)
    shares = torch.softmax(stored, dim=-1)
    if tail == "renormalise":
        return shares, torch.zeros_like(mass[:, 0])
    if tail == "raw":
        return shares * within, torch.zeros_like(mass[:, 0])
    return shares * within, 1.0 - within[:, 0]
