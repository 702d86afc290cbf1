"""Folders of GLiNER: an encoder inside a larger model, whose other weights no trim touches.

GLiNER is not needed here. Its folder is `gliner_config.json` (the encoder's configuration under
`encoder_config`, ids of its own tokens under names that end in `_token_index`), a tokenizer, and
`model.safetensors` or `pytorch_model.bin`, with the encoder's weights under PREFIX.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

from polydistill.disk import Json, read_json, write_json
from polydistill.errors import ModelError
from polydistill.models.load import COUNTS, check_finite, check_sizes, first_line, refuse_code
from polydistill.models.trim_proof import same_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CONFIG = "gliner_config.json"
WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
PREFIX = "token_rep_layer.bert_layer.model."
# Parts that have a vocabulary of their own.
OTHERS = ("labels_encoder", "labels_decoder", "labels_encoder_config", "labels_decoder_config")


@dataclass(frozen=True)
class Gliner:
    """A GLiNER model on disk.

    encoder   its encoder, in the precision of the file
    state     every weight of the file by name, the encoder's among them
    metadata  of the safetensors file: names of weights that are stored once for several
    config    the contents of gliner_config.json
    """

    encoder: PreTrainedModel
    state: dict[str, Tensor]
    metadata: dict[str, str]
    config: Json


def load_gliner(folder: Path, *, allow_pickle: bool = False, field: str = "model") -> Gliner:
    """Read a GLiNER model.

    Raises ModelError for a pickle that is not allowed, an encoder without a configuration of its own, a part
    with another vocabulary, and weights that do not fit the configuration.
    """
    config = read_json(folder / CONFIG, dict)
    for name in OTHERS:
        if config.get(name):
            raise ModelError(
                f"{field}.{name}",
                str(config[name])[:60],
                "is a second encoder or a decoder with a vocabulary of its own, which is not supported",
                "trim a GLiNER model with one encoder",
            )
    encoder_config = _encoder_config(folder, config, field)
    state, metadata = _read_state(folder, allow_pickle, field)
    own = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    types = {tensor.dtype for tensor in own.values() if tensor.is_floating_point()}
    if len(types) != 1:
        raise ModelError(
            field,
            str(folder),
            f"the weights of its encoder ({PREFIX}…) have {len(types)} floating-point types",
            "give a GLiNER model of one encoder in one precision",
        )
    check_sizes(encoder_config, f"{field}.encoder_config")
    try:
        encoder = AutoModel.from_config(encoder_config, dtype=next(iter(types)), trust_remote_code=False)
        missing, unexpected = encoder.load_state_dict(own, strict=False)
        beyond = [name for name in unexpected if name.rpartition(".")[2] not in COUNTS]
        if missing or beyond:
            raise ValueError(f"they lack {missing[:2]} and have {beyond[:2]} beyond it")
    except Exception as error:  # architectures raise various types for impossible sizes
        raise ModelError(
            field,
            str(folder),
            f"its encoder's weights do not fit its encoder_config ({first_line(error)})",
            "load and save it with GLiNER once, so that both are written anew",
        ) from error
    check_finite(encoder, str(folder), field)
    return Gliner(encoder.eval(), state, metadata, config)


def save_gliner(gliner: Gliner, smaller: PreTrainedModel, kept: npt.NDArray[np.int64], folder: Path) -> None:
    """Write a GLiNER model with a trimmed encoder; all other weights and settings stay.

    kept  [n] new id → old id
    """
    new_id = {int(old): new for new, old in enumerate(kept)}
    config = dict(gliner.config)
    for name, value in gliner.config.items():
        if name.endswith("_token_index") and isinstance(value, int) and value >= 0:
            if value not in new_id:
                raise ModelError(
                    f"model.{name}",
                    value,
                    "is the id of a piece that is not kept",
                    "add its token to the tokenizer as an added token",
                )
            config[name] = new_id[value]
    config["vocab_size"] = len(kept)
    changed = smaller.config.to_dict()
    own = gliner.config["encoder_config"]
    config["encoder_config"] = {name: changed.get(name, value) for name, value in own.items()}
    write_json(folder / CONFIG, config)
    state = gliner.state | {
        PREFIX + name: tensor.contiguous()
        for name, tensor in smaller.state_dict().items()
        if PREFIX + name in gliner.state
    }
    save_file(state, folder / WEIGHTS, metadata=gliner.metadata or None)


def _encoder_config(folder: Path, config: Json, field: str) -> PreTrainedConfig:
    values = config.get("encoder_config")
    if not isinstance(values, dict) or "model_type" not in values:
        raise ModelError(
            f"{field}.encoder_config",
            None,
            f"{CONFIG} does not describe the encoder",
            "load and save the model with GLiNER once: `GLiNER.from_pretrained(OLD).save_pretrained(NEW)`",
        )
    known = {name: value for name, value in values.items() if name != "model_type"}
    try:
        return AutoConfig.for_model(values["model_type"], **known)
    except Exception as error:  # huggingface_hub's validation raises its own types
        raise ModelError(
            f"{field}.encoder_config", str(folder), f"cannot be read ({first_line(error)})", "correct it"
        ) from error


def _read_state(folder: Path, allow_pickle: bool, field: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(weights by name, metadata) of a GLiNER folder."""
    path = folder / WEIGHTS
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as opened:
                names = list(opened.keys())
                return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata() or {})
        except Exception as error:  # safetensors raises its own type
            raise ModelError(
                field, str(path), f"cannot be read ({first_line(error)})", "use an undamaged file"
            ) from error
    if not (folder / PICKLE).is_file():
        raise ModelError(field, str(folder), f"holds no {WEIGHTS} and no {PICKLE}", "give a whole folder")
    if not allow_pickle:
        raise ModelError(
            field,
            str(folder),
            f"its weights exist only as a pickle ({PICKLE}), which can run code when opened",
            "save it with `save_pretrained(FOLDER, safe_serialization=True)`, or, if you trust it, pass "
            "--allow-pickle",
        )
    try:
        loaded = torch.load(folder / PICKLE, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises various types
        refuse_code(error, str(folder), field)
        raise ModelError(
            field, str(folder / PICKLE), f"cannot be read ({first_line(error)})", "use an undamaged file"
        ) from error
    # A safetensors file refuses tensors that share memory.
    return {name: tensor.clone() for name, tensor in loaded.items()}, {}


def same_bytes_elsewhere(one: Gliner, other: Gliner) -> list[str]:
    """Names of weights outside the encoder that are not the same to the byte in both files."""
    names = {name for name in one.state.keys() | other.state.keys() if not name.startswith(PREFIX)}
    return sorted(
        name
        for name in names
        if name not in one.state
        or name not in other.state
        or not same_bytes(one.state[name], other.state[name])
    )
