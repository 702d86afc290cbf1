"""What each part of a model adds to its loss on a language's text, to first order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from polydistill.losses.sparse import sparse_soft_cross_entropy
from polydistill.masking import Masked
from polydistill.models.features import masked_features, output_layer
from polydistill.models.inputs import length_batches, pad_batch
from polydistill.models.narrow import Axis, Importance, Scores, Widths, weight_axes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Part of the identity of importances, and so of the models that are chosen by them.
IMPORTANCE_VERSION = 1
NAME = "importance.npz"


def measure_importance(
    model: PreTrainedModel, texts: Sequence[Masked], *, pad_id: int, batch_tokens: int
) -> Importance:
    """Σ over batches and over a part's weights of |weight x gradient| of the masked language model's loss.

    model         of an architecture in `narrow.LAYOUTS`, in float32; runs without dropout
    texts         masked, in the model's ids
    batch_tokens  padded tokens of a batch; the loss is a mean over its masked tokens

    A part is a dimension of the residual stream, an attention head or a feed-forward unit; its weights are
    all rows and columns that belong to it. |weight x gradient| is the first-order change of the loss if that
    weight were 0 (after Molchanov et al. 2017, and for heads Michel et al. 2019, who take it of a part's
    outputs together). A part that nothing reads, with no weight of its own on the way, has importance 0.
    """
    axes = weight_axes(model)
    widths, depth = Widths.of(model.config), model.config.num_hidden_layers
    made = Importance(
        np.zeros(widths.hidden), np.zeros((depth, widths.heads)), np.zeros((depth, widths.units))
    )
    where = next(model.parameters()).device
    model.eval().requires_grad_(True)
    for batch in length_batches([len(text.input_ids) for text in texts], batch_tokens):
        chosen = [texts[index] for index in batch]
        if not any(len(text.positions) for text in chosen):
            continue
        model.zero_grad(set_to_none=True)
        _loss(model, chosen, pad_id, where).backward()
        # A tied table has one name here, and the gradient of all its uses.
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                _add(made, (weight.detach() * weight.grad).abs().double(), axes[name])
    model.zero_grad(set_to_none=True)
    return made


def _loss(model: PreTrainedModel, texts: Sequence[Masked], pad_id: int, where: torch.device) -> Tensor:
    """The mean cross-entropy at masked positions."""
    ids, attention = pad_batch([text.input_ids for text in texts], pad_id)
    positions = np.concatenate([text.positions + row * ids.shape[1] for row, text in enumerate(texts)])
    gold = torch.from_numpy(np.concatenate([text.gold for text in texts]).astype(np.int64)).to(where)
    inputs = {"input_ids": ids.to(where), "attention_mask": attention.to(where)}
    features = masked_features(model, inputs, torch.from_numpy(positions.astype(np.int64)).to(where))
    target = torch.full((len(gold), 1), 1.0 / len(gold), device=where)
    return sparse_soft_cross_entropy(features, *output_layer(model), gold[:, None], target).loss


def _add(made: Importance, change: Tensor, axes: Sequence[Axis]) -> None:
    """Add a weight's changes to the parts that its axes go over."""
    for axis in axes:
        others = [number for number in range(change.ndim) if number != axis.number]
        along = (change.sum(others) if others else change).cpu().numpy()
        parts = made.hidden if axis.layer is None else getattr(made, axis.space)[axis.layer]
        # Of heads, each has several places.
        parts += along.reshape(axis.tables, len(parts), -1).sum((0, 2))


def write_importance(importance: Importance, folder: Path) -> None:
    """Write it into a folder."""
    np.savez_compressed(folder / NAME, **importance._asdict())


def read_importance(folder: Path) -> Importance:
    """What `write_importance` wrote."""
    with np.load(folder / NAME, allow_pickle=False) as arrays:
        scores: list[Scores] = [np.asarray(arrays[name], dtype=np.float64) for name in Importance._fields]
    return Importance(*scores)
