"""A model reduced to a part of its vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polydistill.errors import ModelError
from polydistill.models.inputs import pad_batch
from polydistill.tokenization.encode import encode
from polydistill.tokenization.load import LoadedTokenizer, first_position
from polydistill.tokenization.selection import Selection

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Most logits of a batch in memory at once, of the larger of the two models.
MAX_LOGITS = 1 << 26


def trim_model(model: PreTrainedModel, kept: npt.NDArray[np.int64]) -> PreTrainedModel:
    """The model with only the rows of the kept pieces; architecture, other weights and dtype do not change.

    kept  [n] new id → old id
    Every tensor whose shape changes with `vocab_size` depends on the vocabulary: embeddings, output layer
    (tied or not) and its bias, wherever and however often an architecture holds them. Special token ids in
    the configuration are mapped; those of dropped pieces become None. Raises ModelError for an id without a
    row, an architecture whose shapes do not follow `vocab_size`, or one that counts positions from the
    padding id if that id would move.
    """
    rows = model.config.vocab_size
    if len(kept) == 0 or int(kept.max()) >= rows:
        raise ModelError(
            "model",
            model.config.model_type,
            f"it has {rows:,} rows, too few for its tokenizer",
            "check that the tokenizer is the model's",
        )
    config = _trim_config(model.config, kept)
    if first_position(model.config) and config.pad_token_id != model.config.pad_token_id:
        raise ModelError(
            "model",
            model.config.model_type,
            f"it counts positions from its padding id, which would move from {model.config.pad_token_id} to "
            f"{config.pad_token_id}",
            "keep more pieces than the old padding id",
        )
    trimmed = _build_like(model, config).to(model.dtype)
    vocabulary = vocabulary_dimensions(model)
    index = torch.from_numpy(kept)
    state = {
        name: tensor.index_select(vocabulary[name], index.to(tensor.device)) if name in vocabulary else tensor
        for name, tensor in model.state_dict().items()
    }
    trimmed.load_state_dict(state)
    return trimmed.eval()


def _build_like(model: PreTrainedModel, config: PreTrainedConfig, device: str = "cpu") -> PreTrainedModel:
    """A model of the same class with another configuration, its weights not yet those that it needs."""
    state = torch.random.get_rng_state()
    try:
        with torch.device(device):
            built = type(model)(copy.deepcopy(config))
    finally:
        torch.random.set_rng_state(state)
    if getattr(model, "pooler", built) is None:
        built.pooler = None
    return built


def logits_difference(
    original: PreTrainedModel,
    trimmed: PreTrainedModel,
    kept: npt.NDArray[np.int64],
    sequences: Sequence[npt.NDArray[np.int64]],
) -> tuple[float, float]:
    """(largest difference, largest logit) of the trimmed and the original model's logits at kept pieces.

    kept       [n] new id → old id
    sequences  each [L] old ids, all of kept pieces, special tokens included
    Both absolute, over all tokens of all sequences; a batch pads sequences of several lengths.
    """
    rows = original.config.vocab_size
    mapping = np.full(rows, -1, dtype=np.int64)
    mapping[kept] = np.arange(len(kept))
    num_rows = max(1, min(8, MAX_LOGITS // (rows * max(map(len, sequences)))))
    largest = difference = 0.0
    for start in range(0, len(sequences), num_rows):
        batch = sequences[start : start + num_rows]
        old = _logits(original, batch)[..., torch.from_numpy(kept)]
        new = _logits(trimmed, [mapping[ids] for ids in batch])
        for row, ids in enumerate(batch):
            difference = max(difference, float((old[row, : len(ids)] - new[row, : len(ids)]).abs().max()))
            largest = max(largest, float(old[row, : len(ids)].abs().max()))
    return difference, largest


def _logits(model: PreTrainedModel, batch: Sequence[npt.NDArray[np.int64]]) -> Tensor:
    ids, attention = pad_batch(batch, model.config.pad_token_id or 0, multiple=1)
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=attention).logits.float()
    return logits


def _trim_config(config: PreTrainedConfig, kept: npt.NDArray[np.int64]) -> PreTrainedConfig:
    new_id = {int(old): new for new, old in enumerate(kept)}
    trimmed = copy.deepcopy(config)
    for name, value in config.to_dict().items():
        if not name.endswith("_token_id") or value is None:
            continue
        try:
            if isinstance(value, list):
                setattr(trimmed, name, [new_id[index] for index in value if index in new_id] or None)
            else:
                setattr(trimmed, name, new_id.get(value))
        except Exception as error:  # huggingface_hub's validation raises its own types
            raise ModelError(
                f"model.config.{name}",
                value,
                "it must be set, and is the id of a dropped piece",
                "set it to the id of one of the tokenizer's special tokens",
            ) from error
    trimmed.vocab_size = len(kept)
    return trimmed


def vocabulary_dimensions(model: PreTrainedModel) -> dict[str, int]:
    """Name of each tensor that depends on the vocabulary → its dimension of pieces."""
    larger = copy.deepcopy(model.config)
    larger.vocab_size += 1
    shapes = _build_like(model, larger, "meta").state_dict()
    dimensions = {}
    for name, tensor in model.state_dict().items():
        other = shapes[name].shape
        changed = [place for place, size in enumerate(tensor.shape) if other[place] != size]
        if changed:
            dimensions[name] = changed[0]
        if len(changed) > 1 or any(tensor.shape[place] != model.config.vocab_size for place in changed):
            raise ModelError(
                "model",
                model.config.model_type,
                f"its {name} of shape {tuple(tensor.shape)} depends on more than the vocabulary's size",
                "please report this architecture: its vocabulary cannot be trimmed yet",
            )
    return dimensions


# Logits are compared on at most LOGIT_TEXTS texts, cut to LOGIT_TOKENS, with every seventh token masked.
LOGIT_TEXTS, LOGIT_TOKENS, MASKED_ONE_IN = 48, 128, 7
# Times the largest logit, if that is above 1: a sum of hundreds of float32 products is not exact.
LOGIT_TOLERANCE = 1e-5


def prove_logits(
    original: PreTrainedModel,
    trimmed: PreTrainedModel,
    tokenizer: LoadedTokenizer,
    selection: Selection,
    held: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Check in float32 that logits of kept pieces did not change; returns the record."""
    sequences = proof_sequences(tokenizer, held, mask_id=tokenizer.special_ids["mask"])
    # The original is not needed in its own precision afterwards.
    difference, largest = logits_difference(original.float(), trimmed, selection.kept, sequences)
    tolerance = refuse_difference(tokenizer.name, "logits", difference, largest)
    return {
        "texts": len(sequences),
        "tokens": sum(map(len, sequences)),
        "max_difference": difference,
        "max_logit": largest,
        "tolerance": tolerance,
    }


def refuse_difference(model: str, output: str, difference: float, largest: float) -> float:
    """The allowed difference of an output whose largest value is `largest`; ModelError if it is exceeded."""
    tolerance = LOGIT_TOLERANCE * max(1.0, largest)
    if not difference <= tolerance:
        raise ModelError(
            "model",
            model,
            f"the trimmed model's {output} differ by {difference:.2g} (allowed: {tolerance:.2g})",
            "please report this architecture; nothing was written",
        )
    return tolerance


def _masked(ids: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], mask_id: int) -> npt.NDArray[np.int64]:
    """[L] ids with every seventh token masked; special tokens (start -1) stay."""
    hidden = (starts >= 0) & (np.arange(len(ids)) % MASKED_ONE_IN == MASKED_ONE_IN // 2)
    return np.where(hidden, mask_id, ids)


def proof_sequences(
    tokenizer: LoadedTokenizer, held: Mapping[str, Sequence[str]], *, mask_id: int | None
) -> list[npt.NDArray[np.int64]]:
    """Ids of the texts to compare on, the same number of each language; masked if there is a mask."""
    share = max(1, LOGIT_TEXTS // len(held))
    texts = [text for language_texts in held.values() for text in language_texts[:share]]
    length = min(tokenizer.max_length, LOGIT_TOKENS)
    encoded = [encoding.cut(length) for encoding in encode(tokenizer, texts)]
    if mask_id is None:
        return [encoding.ids for encoding in encoded]
    return [_masked(encoding.ids, encoding.starts, mask_id) for encoding in encoded]
