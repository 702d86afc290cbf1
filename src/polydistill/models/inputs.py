"""Batches of similar lengths, and padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Padded lengths and rows of a batch's parts are multiples of these: kernels see few shapes.
LENGTH_MULTIPLE, PART_ROWS = 8, 4


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of examples in batches of similar lengths, longest first, within `max_tokens` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        if batches and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = max(1, -(-lengths[index] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
    return batches


def length_parts(lengths: Sequence[int], overhead_tokens: int) -> list[list[int]]:
    """Indices of a batch's examples in parts of similar lengths, longest first; each is padded by itself.

    overhead_tokens  the cost of one more part, in padded tokens
    Dynamic programming finds the cheapest partition of the examples sorted by length. Parts end at multiples
    of PART_ROWS rows, and lengths are rounded up to LENGTH_MULTIPLE, so that few shapes occur.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    borders = [*range(0, len(order), PART_ROWS), len(order)]
    widths = [-(-lengths[order[place]] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE for place in borders[:-1]]
    # costs[j]: of the examples before border j; begins[j]: the first border of that partition's last part.
    costs, begins = [0], [0]
    for end in range(1, len(borders)):
        cost, begin = min(
            (costs[start] + (borders[end] - borders[start]) * widths[start] + overhead_tokens, start)
            for start in range(end)
        )
        costs.append(cost)
        begins.append(begin)
    parts: list[list[int]] = []
    end = len(borders) - 1
    while end > 0:
        parts.append(order[borders[begins[end]] : borders[end]])
        end = begins[end]
    return parts[::-1]


def pad_batch(
    rows: Sequence[Sequence[int] | npt.NDArray[np.integer]], pad_id: int, *, multiple: int = LENGTH_MULTIPLE
) -> tuple[Tensor, Tensor]:
    """([B, L] ids, [B, L] attention mask) of rows of ids, padded to the longest, rounded up to `multiple`."""
    longest = max(len(row) for row in rows)
    length = -(-longest // multiple) * multiple
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return ids, mask
