"""A teacher's predictions at masked positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polydistill.errors import NumericsError
from polydistill.losses.chunks import CHUNK_BYTES, rows_at_once
from polydistill.masking import Masked, uniform
from polydistill.models.features import masked_features, output_layer
from polydistill.models.inputs import pad_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Which pieces are kept: the most likely, draws from all, or half of each.
Sampling = Literal["top_k", "random", "hybrid"]

_DRAW = 9
# Masked positions of a batch are padded to a multiple of this, see `polydistill.padding`. Batches have about
# 1,200 positions, more than training's, so the multiple is larger.
POSITIONS_MULTIPLE = 64
# Pieces per group: the search for the most likely pieces compares the groups' maxima first.
GROUP = 64


@dataclass(frozen=True)
class Predictions:
    """At M masked positions: gold_logprobs [M] nats, top_ids [M, K], top_logprobs [M, K] nats."""

    gold_logprobs: npt.NDArray[np.float32]
    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float32]


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    examples: Sequence[Masked],
    *,
    ids: Sequence[int],
    pad_id: int,
    vocabulary_size: int,
    top_k: int,
    sampling: Sampling,
    dtype: torch.dtype,
    seed: int,
    chunk_positions: int | None = None,
) -> list[Predictions]:
    """Run the teacher over one batch and keep k predictions per masked position.

    ids              the examples' ids, which seed random draws
    vocabulary_size  pieces of the tokenizer; a model's rows beyond them are not predicted, and their
                     probability counts as tail
    dtype            of matrix products (by autocast); logsumexp and probabilities are float32
    chunk_positions  rows of vocabulary products computed at once; by default as many as fit into
                     losses.CHUNK_BYTES
    Raises NumericsError if a logit is not finite.
    """
    device = next(model.parameters()).device
    counts = [len(example.positions) for example in examples]
    gold = torch.from_numpy(np.concatenate([example.gold for example in examples])).to(device)
    features = _features(model, examples, pad_id, dtype)
    weight, bias = output_layer(model)
    weight = weight.to(dtype)
    offset = None if bias is None else bias.float()
    draws, exact = None, {"top_k": top_k, "random": 0, "hybrid": top_k - top_k // 2}[sampling]
    if exact < top_k:
        columns = np.arange(top_k - exact)[None, :]
        rows = [
            uniform(seed, example_id, example.positions[:, None] * 4096 + columns, _DRAW)
            for example_id, example in zip(ids, examples, strict=True)
        ]
        draws = torch.from_numpy(np.concatenate(rows)).float().to(device)
    if chunk_positions is None:
        chunk_positions = max(1, CHUNK_BYTES // (len(weight) * features.element_size()))
    block = rows_at_once(features.device, len(weight), torch.float32)
    parts = []
    for start in range(0, len(gold), chunk_positions):
        products = (features[start : start + chunk_positions] @ weight.t())[: len(gold) - start]
        # Everything after the products is bound by memory: a few rows at a time stay in the cache.
        for first in range(0, len(products), block):
            rows_of = slice(start + first, start + min(len(products), first + block))
            parts.append(
                read_rows(
                    products[first : first + block],
                    offset,
                    gold[rows_of],
                    vocabulary_size,
                    exact,
                    None if draws is None else draws[rows_of],
                )
            )
    gold_all, ids_all, logprobs_all = (
        torch.cat(tensors).cpu().numpy() for tensors in zip(*parts, strict=True)
    )
    if np.isnan(gold_all).any():
        raise NumericsError(
            "teacher",
            None,
            f"predicts NaN or infinity on example {ids[0]:016x} or one batched with it",
            "set `scoring.precision: float32`, or check the checkpoint",
        )
    ends = np.cumsum([0, *counts])
    return [Predictions(gold_all[a:b], ids_all[a:b], logprobs_all[a:b]) for a, b in pairwise(ends)]


def _features(model: PreTrainedModel, examples: Sequence[Masked], pad_id: int, dtype: torch.dtype) -> Tensor:
    """[N, E] inputs of the output layer at the examples' masked positions, in order.

    Padding rows at the end bring N to a multiple of POSITIONS_MULTIPLE.
    """
    device = next(model.parameters()).device
    input_ids, attention = pad_batch([example.input_ids for example in examples], pad_id)
    width = input_ids.shape[1]
    flat = np.concatenate([row * width + example.positions for row, example in enumerate(examples)])
    padded = np.pad(flat, (0, -len(flat) % POSITIONS_MULTIPLE))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        features = masked_features(
            model,
            {"input_ids": input_ids.to(device), "attention_mask": attention.to(device)},
            torch.from_numpy(padded).to(device),
        )
    return features.to(dtype)


def read_rows(
    products: Tensor,
    bias: Tensor | None,
    gold: Tensor,
    vocabulary_size: int,
    exact: int,
    draws: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probabilities of gold pieces [n], ids [n, K], log-probabilities of ids [n, K]) of n rows.

    products  [n, V] features @ weight.T
    exact     number of the most likely pieces that are kept
    draws     [n, K - exact] uniform in [0, 1): further pieces are drawn from the others' probability
    """
    # Columns are padded to whole groups; the padding, -inf, is never among the most likely.
    width = products.shape[1]
    logprobs = torch.full((len(products), -(-width // GROUP) * GROUP), -torch.inf, device=products.device)
    if bias is None:
        logprobs[:, :width] = products
    else:
        torch.add(products, bias, out=logprobs[:, :width])
    logprobs = torch.log_softmax(logprobs, -1)
    gold_logprobs = logprobs.gather(1, gold[:, None])[:, 0]
    if draws is not None and not exact:
        return gold_logprobs, *draw_pieces(logprobs[:, :vocabulary_size], draws)
    logprobs[:, vocabulary_size:] = -torch.inf
    ids, values = likeliest(logprobs, exact)
    if draws is None:
        return gold_logprobs, ids, values
    tail = logprobs[:, :vocabulary_size].scatter(1, ids, -torch.inf)
    drawn, weights = draw_pieces(tail, draws)
    # All draws together weigh what the exact pieces leave, rows beyond the vocabulary included.
    left = 1 - values.double().exp().sum(-1, keepdim=True).clamp(max=1.0)
    mass = left.log().to(values)
    order = torch.cat([values, weights + mass], 1).sort(dim=1, descending=True, stable=True)
    return gold_logprobs, torch.cat([ids, drawn], 1).gather(1, order.indices), order.values


def likeliest(logprobs: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The K largest of each row, ids [N, K] and values [N, K], in descending order.

    They are in the K groups with the largest maxima, so one vectorised pass excludes most columns. `topk`
    over all columns takes as long as the product that made them.
    """
    num_rows, width = logprobs.shape
    grouped = logprobs.view(num_rows, width // GROUP, GROUP)
    num_groups = min(top_k, grouped.shape[1])
    groups = grouped.amax(-1).topk(num_groups, dim=-1, sorted=False).indices
    candidates = grouped.gather(1, groups[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    values, places = candidates.topk(top_k, dim=-1)
    return groups.gather(1, places // GROUP) * GROUP + places % GROUP, values


def draw_pieces(logprobs: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """K draws with replacement from each row's distribution, as distinct ids with log(count / K), else -inf.

    Importance sampling with the teacher as proposal: every draw has weight 1 / K, and the expected target is
    the full distribution (Sparse Logit Sampling, ACL 2025, with exponent 1).

    logprobs [N, V], draws [N, K] uniform in [0, 1)
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    drawn = torch.searchsorted(cumulative, draws.double() * cumulative[:, -1:]).clamp(
        max=logprobs.shape[-1] - 1
    )
    drawn, _ = drawn.sort(-1)
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    times = (drawn[:, :, None] == drawn[:, None, :]).sum(-1)
    weights = torch.where(first, torch.log(times / drawn.shape[1]), -torch.inf)
    order = torch.sort(weights, dim=-1, descending=True, stable=True).indices
    return drawn.gather(1, order), weights.gather(1, order)
