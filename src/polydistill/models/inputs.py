"""Text to what a model takes: masked examples, and batches of similar lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polydistill.config.models import Masking
from polydistill.masking import Masked, mask
from polydistill.tokenization import LoadedTokenizer, encode, word_starts


def mask_texts(
    texts: Sequence[str],
    ids: Sequence[int],
    tokenizer: LoadedTokenizer,
    *,
    max_length: int,
    masking: Masking,
    seed: int,
) -> list[Masked]:
    """Tokenise and mask texts, in the tokenizer's ids; the same ids and seed mask the same words everywhere."""
    return [
        mask(
            encoded.ids,
            encoded.starts,
            word_starts(text),
            example=example,
            seed=seed,
            mask_id=tokenizer.special_ids["mask"],
            ordinary_ids=tokenizer.ordinary_ids,
            unit=masking.unit,
            probability=masking.probability,
            mask_share=masking.mask_share,
            random_share=masking.random_share,
        )
        for text, example, encoded in zip(
            texts, ids, encode(tokenizer.backend, texts, max_length), strict=True
        )
    ]


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
            longest = max(1, -(-lengths[index] // 8) * 8)
    return made


def pad_batch(rows: Sequence[Any], pad_id: int, *, multiple: int = 8) -> tuple[Tensor, Tensor]:
    """([B, L] ids, [B, L] attention mask) of rows of ids, padded to the longest (to a multiple of `multiple`)."""
    longest = max(len(row) for row in rows)
    length = -(-longest // multiple) * multiple
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask_ = torch.zeros((len(rows), length), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        mask_[index, : len(row)] = 1
    return ids, mask_
