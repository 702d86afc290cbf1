"""Masked-token measures: reciprocal rank, top-k accuracy and loss, and the unigram baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polydistill.evaluation.uncertainty import standard_error
from polydistill.losses.chunks import rows_at_once
from polydistill.masking import Masked
from polydistill.models.features import masked_features, output_layer
from polydistill.models.inputs import pad_batch
from polydistill.padding import pad_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# (ids [B, L], attention mask [B, L], positions [N] in the flattened batch) → logits at these positions, in
# order, as one or more float32 tensors [n, V], which the receiver may overwrite.
LogitsAt = Callable[[Tensor, Tensor, Tensor], Iterable[Tensor]]


@dataclass
class Measures:
    """Per masked token: [M] arrays, in the order of examples and positions.

    ranks             of the gold token, from 1; tied logits get their mean rank
    losses            in nats
    restricted_ranks  among the pieces of `restrict`, if given
    counts            [E] masked tokens of each example, with sum M
    """

    ranks: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    losses: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    restricted_ranks: npt.NDArray[np.float64] | None = None
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def summary(self) -> dict[str, float | int]:
        """MRR (mean of 1/rank over masked tokens), top-1 and top-5 accuracy, mean loss, masked tokens.

        `mrr_error` is the standard error over examples.
        """
        values: dict[str, float | int] = {
            "mrr": mean_reciprocal_rank(self.ranks),
            "mrr_error": standard_error(1.0 / self.ranks, self.counts),
            "top1": float((self.ranks <= 1).mean()) if len(self.ranks) else 0.0,
            "top5": float((self.ranks <= 5).mean()) if len(self.ranks) else 0.0,
            "loss": float(self.losses.mean()) if len(self.losses) else 0.0,
            "num_masked": len(self.ranks),
        }
        if self.restricted_ranks is not None:
            values["mrr_teacher_pieces"] = mean_reciprocal_rank(self.restricted_ranks)
        return values


def mean_reciprocal_rank(ranks: npt.NDArray[np.float64]) -> float:
    """Mean of 1/rank over tokens, not over batches (balanced-2022, section 4)."""
    return float((1.0 / ranks).mean()) if len(ranks) else 0.0


def ranks_of(logits: Tensor, gold: Tensor) -> Tensor:
    """[N] ranks of gold [N] in logits [N, V]: 1 + number of greater logits + half the number of ties."""
    own = logits.gather(1, gold[:, None])
    greater = (logits > own).sum(-1)
    equal = (logits == own).sum(-1)
    return 1.0 + greater.double() + (equal.double() - 1.0) / 2.0


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    examples: Sequence[Masked],
    *,
    pad_id: int,
    batches: Sequence[Sequence[int]],
    dtype: torch.dtype = torch.float32,
    restrict: npt.NDArray[np.bool_] | None = None,
    chunk_positions: int = 512,
) -> Measures:
    """Measure a model on masked examples in its own ids, each masked token once.

    batches   indices of the examples of each batch
    restrict  [V] pieces for a second rank (a gold token outside them is included)
    """
    model.eval()
    device = next(model.parameters()).device
    weight, bias = output_layer(model)
    weight = weight.to(dtype)

    def head(input_ids: Tensor, attention: Tensor, positions: Tensor) -> Iterator[Tensor]:
        inputs = {"input_ids": input_ids.to(device), "attention_mask": attention.to(device)}
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features = masked_features(model, inputs, positions.to(device)).to(dtype)
        for start in range(0, len(features), chunk_positions):
            chunk = features[start : start + chunk_positions]
            products = (pad_rows(chunk) @ weight.t())[: len(chunk)]
            # Ranks take many passes over the logits: on a CPU a few rows at a time stay in the cache.
            for rows in torch.split(products, rows_at_once(device, len(weight), torch.float32)):
                yield rows.float() if bias is None else rows + bias.float()

    return measure_logits(head, examples, pad_id=pad_id, batches=batches, restrict=restrict)


@torch.no_grad()
def measure_logits(
    logits_at: LogitsAt,
    examples: Sequence[Masked],
    *,
    pad_id: int,
    batches: Sequence[Sequence[int]],
    restrict: npt.NDArray[np.bool_] | None = None,
) -> Measures:
    """Measure a source of logits on masked examples, each masked token once; see `measure`, `LogitsAt`."""
    measured: dict[int, list[npt.NDArray[np.float64]]] = {}
    for batch in batches:
        chosen = [index for index in batch if len(examples[index].positions)]
        if not chosen:
            continue
        input_ids, attention = pad_batch([examples[index].input_ids for index in chosen], pad_id)
        width = input_ids.shape[1]
        flat = np.concatenate([row * width + examples[index].positions for row, index in enumerate(chosen)])
        gold = torch.from_numpy(np.concatenate([examples[index].gold for index in chosen]))
        parts, start = [], 0
        for logits in logits_at(input_ids, attention, torch.from_numpy(flat)):
            golden = gold[start : start + len(logits)].to(logits.device)
            start += len(logits)
            loss = logits.logsumexp(-1) - logits.gather(1, golden[:, None])[:, 0]
            batch_ranks = batch_restricted = ranks_of(logits, golden)
            if restrict is not None:
                allowed = torch.from_numpy(restrict).to(logits.device)
                own = logits.gather(1, golden[:, None])
                logits.masked_fill_(~allowed, -torch.inf).scatter_(1, golden[:, None], own)
                batch_restricted = ranks_of(logits, golden)
            parts.append((batch_ranks, loss.double(), batch_restricted))
        joined = [torch.cat(tensors).cpu().numpy() for tensors in zip(*parts, strict=True)]
        ends = np.cumsum([len(examples[index].positions) for index in chosen])[:-1]
        for index, *arrays in zip(chosen, *(np.split(values, ends) for values in joined), strict=True):
            measured[index] = arrays
    if not measured:
        return Measures()
    ranks, losses, restricted = (
        np.concatenate([measured[index][part] for index in sorted(measured)]) for part in range(3)
    )
    counts = np.array([len(measured[index][0]) for index in sorted(measured)])
    return Measures(ranks, losses, restricted if restrict is not None else None, counts)


def unigram_ranks(counts: npt.NDArray[np.int64], gold: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """[M] ranks of gold tokens when pieces are ranked by their frequency in the training text.

    counts  [V] frequency of each piece in the training text; ties get their mean rank
    A model at this level has learned nothing from context.
    """
    ordered = np.sort(counts)
    own = counts[gold]
    greater = len(counts) - np.searchsorted(ordered, own, side="right")
    equal = np.searchsorted(ordered, own, side="right") - np.searchsorted(ordered, own, side="left")
    return np.asarray(1.0 + greater + (equal - 1) / 2.0, dtype=np.float64)


@torch.no_grad()
def guesses(
    model: PreTrainedModel,
    example: Masked,
    place: int,
    *,
    pad_id: int,
    k: int = 5,
    dtype: torch.dtype = torch.float32,
) -> list[tuple[int, float]]:
    """(id, probability) of the k most probable pieces at one masked position of an example.

    place  index among the example's masked positions
    """
    model.eval()
    device = next(model.parameters()).device
    input_ids, attention = pad_batch([example.input_ids], pad_id)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        features = masked_features(
            model,
            {"input_ids": input_ids.to(device), "attention_mask": attention.to(device)},
            torch.tensor([int(example.positions[place])], device=device),
        )
    weight, bias = output_layer(model)
    logits = features.float() @ weight.float().t() + (0.0 if bias is None else bias.float())
    values, indices = logits.softmax(-1)[0].topk(k)
    return [(int(index), float(value)) for index, value in zip(indices, values, strict=True)]
