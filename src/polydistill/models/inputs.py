"""Text to what a model takes: masked examples, and batches of similar lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Lengths of padded batches, and rows of parts of a batch, come in steps of these: few shapes for kernels to be made for.
LENGTH_MULTIPLE, PART_ROWS = 8, 4


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of examples in batches of similar lengths, longest first, each within a budget of padded tokens."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    made: list[list[int]] = []
    longest = 0
    for index in order:
        if made and (len(made[-1]) + 1) * longest <= max_tokens:
            made[-1].append(index)
        else:
            made.append([index])
            longest = max(1, -(-lengths[index] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
    return made


def length_parts(lengths: Sequence[int], overhead_tokens: int) -> list[list[int]]:
    """Indices of a batch's examples in parts of similar lengths, longest first, each part to be padded by itself.

    overhead_tokens  what one more part costs, in padded tokens
    The cheapest partition of the examples in the order of their lengths, by dynamic programming. Parts end at multiples
    of PART_ROWS rows and lengths count in steps of LENGTH_MULTIPLE, so that few shapes come up.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    borders = [*range(0, len(order), PART_ROWS), len(order)]
    widths = [-(-lengths[order[place]] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE for place in borders[:-1]]
    # costs[j]: of the examples before border j; begins[j]: where the last part of the cheapest partition begins.
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


def pad_batch(rows: Sequence[Any], pad_id: int, *, multiple: int = LENGTH_MULTIPLE) -> tuple[Tensor, Tensor]:
    """([B, L] ids, [B, L] attention mask) of rows of ids, padded to the longest (to a multiple of `multiple`)."""
    longest = max(len(row) for row in rows)
    length = -(-longest // multiple) * multiple
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask_ = torch.zeros((len(rows), length), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        mask_[index, : len(row)] = 1
    return ids, mask_
