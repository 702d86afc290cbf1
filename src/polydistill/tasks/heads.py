"""Encoders with a new head for a task, their batches and predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    set_seed,
)

from polydistill.errors import ModelError
from polydistill.models.inputs import length_batches
from polydistill.models.load import check_finite, check_weights, model_config, read_weights, refuse_pickle

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

HEADS = {
    "ner": AutoModelForTokenClassification,
    "pos": AutoModelForTokenClassification,
    "classification": AutoModelForSequenceClassification,
    "pairs": AutoModelForSequenceClassification,
    "choice": AutoModelForMultipleChoice,
    "qa": AutoModelForQuestionAnswering,
}
# Target of tokens without a label, which torch's cross-entropy ignores.
NO_LABEL = -100
# Names of label layers, and of task-specific layers right before them, by architecture.
LABEL_LAYERS = ("classifier", "qa_outputs", "pre_classifier", "score", "logits_proj", "sequence_summary")
Feature = Mapping[str, Any]


def load_with_head(
    model: str,
    kind: str,
    *,
    num_labels: int,
    seed: int,
    field: str = "model",
    revision: str | None = None,
    allow_pickle: bool = False,
    random: bool = False,
    fresh: bool = True,
) -> PreTrainedModel:
    """An encoder in float32 with a head for a kind of task.

    seed    of the head's missing weights (and of a pooler's, which students lack)
    random  draw all weights from the seed
    fresh   draw the label layer even if the folder has one, perhaps of another task or training
    Raises ModelError if it cannot be loaded, if the encoder lacks weights, or if they exist only as a pickle;
    NumericsError if a weight is not finite.
    """
    if not random:
        refuse_pickle(model, field, revision, allow_pickle)
    # The folder's values may be another task's. An answer has a start and an end, a choice one score.
    labels: dict[str, int | None] = {
        "num_labels": {"qa": 2, "choice": 1}.get(kind, num_labels),
        "problem_type": None,
    }
    # Silences a warning about the folder's missing head, which is intended here.
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    set_seed(seed)
    if random:
        config = model_config(model, revision=revision)
        for name, value in labels.items():
            setattr(config, name, value)
        return HEADS[kind].from_config(config, dtype=torch.float32)
    model_config(model, revision=revision)
    loaded, info = read_weights(
        HEADS[kind],
        model,
        field=field,
        problem=f"cannot be loaded with a head for {kind}",
        remedy="give a folder or a hub name of an encoder, such as a BERT",
        revision=revision,
        allow_pickle=allow_pickle,
        dtype=torch.float32,
        ignore_mismatched_sizes=fresh,
        **labels,
    )
    base = f"{loaded.base_model_prefix}."
    mismatched = [key if isinstance(key, str) else key[0] for key in info.get("mismatched_keys", [])]
    own = [*info["missing_keys"], *mismatched]
    missing = sorted(key for key in own if key.startswith(base) and "pooler" not in key)
    if missing:
        raise ModelError(
            field,
            model,
            f"its file lacks weights of the encoder ({', '.join(missing[:3])})",
            "use a complete checkpoint",
        )
    check_weights(loaded, info, model, field, revision)
    if fresh:
        _redraw_labels(loaded, kind, seed, drawn={*own})
    check_finite(loaded, model, field)
    return loaded


def _redraw_labels(model: PreTrainedModel, kind: str, seed: int, *, drawn: set[str]) -> None:
    """Replace a head's weights from the folder by weights drawn from the seed.

    drawn  keys that are not in the folder
    """
    old = {
        key: weight
        for key, weight in model.state_dict(keep_vars=True).items()
        if key.startswith(LABEL_LAYERS) and key not in drawn
    }
    if not old:
        return
    set_seed(seed)
    new = HEADS[kind].from_config(model.config, dtype=torch.float32).state_dict()
    with torch.no_grad():
        for key, weight in old.items():
            weight.copy_(new[key])


def takes_segments(config: PreTrainedConfig, input_names: Sequence[str]) -> bool:
    """Whether token types mark a pair's second text: the model has two, and its tokenizer writes them."""
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1 and "token_type_ids" in input_names


def collate(features: Sequence[Feature], *, pad_id: int) -> dict[str, Tensor]:
    """A batch of features, padded to the longest.

    features  `input_ids` [L], or [n, L] for choices; `token_type_ids` alike, if the model uses them;
              `labels`: a number, or one per token; `start_positions`, `end_positions`
    """
    nested = isinstance(features[0]["input_ids"][0], list)
    choices = len(features[0]["input_ids"]) if nested else 1
    batch = {}
    for name, filler in (("input_ids", pad_id), ("token_type_ids", 0)):
        if name in features[0]:
            rows = [row for feature in features for row in (feature[name] if nested else [feature[name]])]
            batch[name] = _padded(rows, filler)
            if name == "input_ids":
                batch["attention_mask"] = _padded([[1] * len(row) for row in rows], 0)
    if nested:
        batch = {name: tensor.view(len(features), choices, -1) for name, tensor in batch.items()}
    for name in ("labels", "start_positions", "end_positions"):
        if name in features[0]:
            values = [feature[name] for feature in features]
            batch[name] = _padded(values, NO_LABEL) if isinstance(values[0], list) else torch.tensor(values)
    return batch


def predict(
    model: PreTrainedModel, features: Sequence[Feature], *, pad_id: int, batch_tokens: int, dtype: torch.dtype
) -> Iterator[tuple[int, tuple[npt.NDArray[np.float32], ...]]]:
    """(index, logits) of each feature, in order of computation; `qa` has two arrays, starts and ends.

    Logits of tokens are cut to the feature's own length.
    """
    device = next(model.parameters()).device
    model.eval()
    for batch in length_batches([num_tokens(feature) for feature in features], batch_tokens):
        inputs = collate([_unlabelled(features[index]) for index in batch], pad_id=pad_id)
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = model(**{name: tensor.to(device) for name, tensor in inputs.items()})
        logits = (out.start_logits, out.end_logits) if "start_logits" in out else (out.logits,)
        rows = [tensor.float().cpu().numpy() for tensor in logits]
        tokens = "start_logits" in out or rows[0].ndim == 3
        for place, index in enumerate(batch):
            length = len(features[index]["input_ids"])
            yield index, tuple(row[place, :length] if tokens else row[place] for row in rows)


def num_tokens(feature: Feature) -> int:
    """Tokens of a feature in a batch; for choices, the longest times their number."""
    ids = feature["input_ids"]
    return len(ids) * max(map(len, ids)) if isinstance(ids[0], list) else len(ids)


def _unlabelled(feature: Feature) -> dict[str, Any]:
    return {name: feature[name] for name in ("input_ids", "token_type_ids") if name in feature}


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows], dtype=torch.long)
