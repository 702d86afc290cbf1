"""The proof that a trim changed nothing else: outputs on kept pieces, and every weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polydistill.errors import ModelError
from polydistill.models.inputs import pad_batch
from polydistill.models.kinds import Kind
from polydistill.models.trim import proof_sequences, refuse_difference, vocabulary_dimensions
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.selection import Selection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Texts that both models read at once.
BATCH_TEXTS = 8


def prove_outputs(
    original: PreTrainedModel,
    trimmed: PreTrainedModel,
    kind: Kind,
    tokenizer: LoadedTokenizer,
    selection: Selection,
    held: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Check in float32 that what a model computes from kept pieces did not change; returns the record.

    kind  any but a masked language model, whose outputs are the pieces themselves (`prove_logits`)
    Raises ModelError for an output that differs by more than 1e-5 of its largest value, if that is above 1.
    """
    sequences = proof_sequences(tokenizer, held, mask_id=None)
    outputs = outputs_difference(original.float(), trimmed, kind, selection.kept, sequences)
    return {
        "texts": len(sequences),
        "tokens": sum(map(len, sequences)),
        "fields": {
            name: {
                "max_difference": difference,
                "max_value": largest,
                "tolerance": refuse_difference(tokenizer.name, name, difference, largest),
            }
            for name, (difference, largest) in outputs.items()
        },
    }


def outputs_difference(
    original: PreTrainedModel,
    trimmed: PreTrainedModel,
    kind: Kind,
    kept: npt.NDArray[np.int64],
    sequences: Sequence[npt.NDArray[np.int64]],
) -> dict[str, tuple[float, float]]:
    """Output → (largest difference, largest value) of the trimmed and the original model.

    kept, sequences  as for `logits_difference`
    Over the tokens of all sequences, their padding left out; over all of an output that is pooled.
    """
    mapping = np.full(original.config.vocab_size, -1, dtype=np.int64)
    mapping[kept] = np.arange(len(kept))
    found: dict[str, tuple[float, float]] = {}
    for start in range(0, len(sequences), BATCH_TEXTS):
        batch = sequences[start : start + BATCH_TEXTS]
        old = _outputs(original, kind, batch)
        new = _outputs(trimmed, kind, [mapping[ids] for ids in batch])
        for name, values in old.items():
            difference, largest = found.get(name, (0.0, 0.0))
            for row, ids in enumerate(batch):
                # A pooled output has no tokens to cut.
                place = row if kind.pooled or name == "pooler_output" else (row, slice(len(ids)))
                difference = max(difference, float((values[place] - new[name][place]).abs().max()))
                largest = max(largest, float(values[place].abs().max()))
            found[name] = difference, largest
    return found


def _outputs(model: PreTrainedModel, kind: Kind, batch: Sequence[npt.NDArray[np.int64]]) -> dict[str, Tensor]:
    ids, attention = pad_batch(batch, model.config.pad_token_id or 0, multiple=1)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=attention)
    found = {name: getattr(output, name, None) for name in kind.outputs}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def prove_weights(
    original: PreTrainedModel, trimmed: PreTrainedModel, kept: npt.NDArray[np.int64], name: str
) -> dict[str, Any]:
    """Check that the trimmed model has the original's rows of kept pieces, and all else of it to the byte.

    original, trimmed  as they are in their files
    Returns the names of the tensors that were cut, with their shapes, and the number and bytes of the others.
    Raises ModelError for a tensor that differs.
    """
    vocabulary, index = vocabulary_dimensions(original), torch.from_numpy(kept)
    states = original.state_dict(), trimmed.state_dict()
    different = sorted(states[0].keys() ^ states[1].keys())
    cut, whole = {}, []
    for key, tensor in states[0].items():
        wanted = tensor.index_select(vocabulary[key], index) if key in vocabulary else tensor
        if key in states[1] and not same_bytes(wanted, states[1][key]):
            different.append(key)
        if key in vocabulary:
            cut[key] = [list(tensor.shape), list(wanted.shape)]
        else:
            whole.append(tensor)
    if different:
        raise ModelError(
            "model",
            name,
            f"{len(different)} of its weights are not what they were, such as {different[0]}",
            "please report this architecture; nothing was written",
        )
    return {
        "cut": cut,
        "unchanged": len(whole),
        "unchanged_bytes": sum(tensor.numel() * tensor.element_size() for tensor in whole),
    }


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Equal in type, shape and every bit: -0 is not 0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))
