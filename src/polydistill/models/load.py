"""Loading masked language models safely."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import regex
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import cached_file

from polydistill.config.paths import refuse_missing
from polydistill.disk import fingerprint, hash_file
from polydistill.errors import ModelError, NumericsError
from polydistill.limits import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_DECODERS = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*MODEL_FOR_MASKED_LM_MAPPING_NAMES}
# No encoder has more. Without these limits a damaged configuration would be built before it is compared.
MAX_LAYERS, MAX_POSITIONS = 1000, 1 << 22
# Integer tensors in files of earlier versions of transformers, beside the weights.
COUNTS = {"position_ids", "token_type_ids", "num_batches_tracked"}


def load_masked_lm(
    model: str,
    *,
    name: str = "",
    revision: str | None = None,
    allow_pickle: bool = False,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    field: str | None = None,
    unused: list[str] | None = None,
) -> PreTrainedModel:
    """A masked language model in evaluation mode, its weights from safetensors.

    dtype  of the loaded weights; `auto` for the file's own (a float16 file then stays float16, even on a CPU)
    field  the recipe's field of the model, for messages; by default under `teachers`, or `model`
    unused takes the names of weights in the file that the model does not have
    Raises ModelError if there is no model, if its weights exist only as a pickle, if the architecture has no
    MLM head, or if the file lacks weights; NumericsError if a weight is not finite.
    """
    field = field or (f"teachers.{name}" if name else "model")
    refuse_pickle(model, field, revision, allow_pickle)
    masked_lm_config(model, revision=revision, field=field)
    _weight_files(model, revision, field)
    loaded, info = read_weights(
        AutoModelForMaskedLM,
        model,
        field=field,
        problem="cannot be loaded as a masked language model",
        remedy="give a folder or a hub name of a model with an MLM head (such as BertForMaskedLM)",
        revision=revision,
        allow_pickle=allow_pickle,
        dtype=dtype,
    )
    missing = missing_weights(info)
    if missing:
        raise ModelError(
            field,
            model,
            f"its file lacks weights that a masked language model needs ({', '.join(missing[:3])})",
            "it was saved without its MLM head, or is another kind of model: use a checkpoint with one",
        )
    check_weights(loaded, info, model, field, revision)
    check_finite(loaded, model, field)
    if unused is not None:
        unused += sorted(info["unexpected_keys"])
    return loaded.eval()


def missing_weights(info: Mapping[str, Any]) -> list[str]:
    """Names of weights that a file lacks, or has in another shape, of transformers' loading info."""
    return sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", []))


def read_weights(
    auto_class: Any,
    model: str,
    *,
    field: str,
    problem: str,
    remedy: str,
    revision: str | None,
    allow_pickle: bool,
    dtype: torch.dtype | Literal["auto"],
    **options: object,
) -> tuple[Any, dict[str, Any]]:
    """(model, transformers' loading info) of a folder or hub name, without code of its own.

    auto_class       one of transformers' AutoModel classes
    problem, remedy  of the ModelError for what it cannot load
    options          more arguments of from_pretrained
    """
    try:
        loaded, info = auto_class.from_pretrained(
            model,
            revision=revision,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=None if allow_pickle else True,
            weights_only=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # safetensors and pickle raise their own types for a damaged file
        if is_out_of_memory(error):
            raise
        refuse_code(error, model, field)
        raise ModelError(field, model, f"{problem} ({first_line(error)})", remedy) from error
    return loaded, info


def check_finite(loaded: PreTrainedModel, model: str, field: str) -> None:
    """Raise NumericsError if a weight or a buffer of a loaded model is not finite."""
    for key, tensor in loaded.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise NumericsError(
                field, model, f"its weight {key} holds NaN or infinity", "use an undamaged checkpoint"
            )


def model_config(
    model: str, *, name: str = "", revision: str | None = None, field: str | None = None
) -> PreTrainedConfig:
    """A model's configuration. Raises ModelError if it cannot be read, or fits no model."""
    field = field or (f"teachers.{name}" if name else "model")
    refuse_missing(model, field)
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except Exception as error:  # huggingface_hub's validation raises its own types
        raise ModelError(
            field,
            model,
            f"cannot be loaded ({first_line(error)})",
            "give a folder with config.json, or a name on the hub (and unset HF_HUB_OFFLINE)",
        ) from error
    check_sizes(config, field, model)
    return config


def masked_lm_config(
    model: str, *, name: str = "", revision: str | None = None, field: str | None = None
) -> PreTrainedConfig:
    """`model_config` of a masked language model. Raises ModelError for another kind, such as a decoder."""
    config = model_config(model, name=name, revision=revision, field=field)
    kind = config.model_type
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        what = "is a decoder, which predicts the next token" if is_decoder(config) else "has no MLM head"
        raise ModelError(
            field or (f"teachers.{name}" if name else "model"),
            model,
            f"{what} (model type {kind})",
            "give a masked language model, such as BERT, RoBERTa, XLM-R or ModernBERT",
        )
    return config


def is_decoder(config: PreTrainedConfig) -> bool:
    """Whether a configuration is of an architecture that only predicts the next token."""
    return config.model_type in _DECODERS


def check_sizes(config: PreTrainedConfig, field: str, value: object = None) -> None:
    """Raise ModelError for impossible numbers of layers, heads or positions, before a model is built."""
    for name, number in config.to_dict().items():
        if type(number) is not int or "norm" in name:
            continue
        limit = MAX_LAYERS if "layer" in name else MAX_POSITIONS if "position" in name else None
        least = None if limit is None else -1
        if name.endswith("_heads"):
            least = 1
        elif name.endswith("layers"):
            least = 0
        if (limit is not None and number > limit) or (least is not None and number < least):
            bounds = f"at least {least}" if limit is None else f"from {least} to {limit}"
            raise ModelError(
                field,
                value,
                f"its configuration has {name} {number}; a model has {bounds}",
                f"set {name} in config.json, or in the recipe",
            )


def refuse_code(error: Exception, model: str, field: str) -> None:
    """Raise ModelError for a loading error that means a pickle holds more than weights."""
    if isinstance(error, pickle.UnpicklingError) or "Weights only load failed" in str(error):
        unsupported = regex.search(r"Unsupported (?:global|class|operand)[^.\n]{0,100}", str(error))
        reason = unsupported[0] if unsupported else "damaged"
        raise ModelError(
            field,
            model,
            f"its pickle is refused: it holds more than weights, or is none ({reason})",
            "use safetensors; do not use this pickle unless you know who made it",
        ) from error


def check_weights(
    loaded: PreTrainedModel, info: dict[str, Any], model: str, field: str, revision: str | None
) -> None:
    """Raise ModelError if a model's files hold layers beyond its configuration's, or integer weights.

    info  of `from_pretrained`, about keys
    """
    shapes = {_numberless(key) for key in loaded.state_dict()}
    beyond = [
        key
        for key in sorted(info["unexpected_keys"])
        if _numberless(key) in shapes and _numberless(key) != key
    ]
    if beyond:
        raise ModelError(
            field,
            model,
            f"its file holds layers that its configuration lacks ({beyond[0]}, {len(beyond)} weights in all)",
            "correct the number of layers in config.json, or use the checkpoint that belongs to it",
        )
    counts = COUNTS | {name.rpartition(".")[2] for name, _ in loaded.named_buffers()}
    for key, dtype in _dtypes(model, revision):
        if (
            dtype.startswith(("I", "U", "BOOL", "int", "uint", "bool"))
            and key.rpartition(".")[2] not in counts
        ):
            raise ModelError(
                field,
                model,
                f"its weight {key} has an integer type ({dtype})",
                "use the checkpoint before quantisation; distillation and fine-tuning need floating point",
            )


def _numberless(key: str) -> str:
    return regex.sub(r"(?<=\.)\d+(?=\.)", "#", key)


def _dtypes(model: str, revision: str | None) -> Iterator[tuple[str, str]]:
    """(key, type) of every tensor in the weight files that are loaded: safetensors, or else pickles."""
    files = {name: path for name, path in _weight_files(model, revision).items() if path is not None}
    safe = [path for name, path in files.items() if name.endswith(".safetensors")]
    for path in safe:
        with safe_open(path, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                yield key, opened.get_slice(key).get_dtype()
    for path in [] if safe else [path for name, path in files.items() if name.endswith(".bin")]:
        for key, tensor in torch.load(path, map_location="meta", weights_only=True).items():
            if isinstance(tensor, torch.Tensor):
                yield key, str(tensor.dtype).removeprefix("torch.")


def weight_types(model: str, *, revision: str | None = None) -> set[str]:
    """Names of the floating-point types in a model's safetensors files; of a pickle none, unopened."""
    if not any(find_file(model, file, revision) for file in WEIGHT_FILES):
        return set()
    types = {dtype for _, dtype in _dtypes(model, revision)}
    return {dtype for dtype in types if dtype.startswith(("F", "BF", "float", "bfloat"))}


def weights_fingerprint(model: str, *, revision: str | None = None) -> str:
    """A model's identity by content: the hash of its weight files and configuration."""
    files = _weight_files(model, revision)
    config = find_file(model, "config.json", revision)
    hashes = {} if config is None else {"config.json": hash_file(config)}
    return fingerprint(
        hashes | {name: hash_file(path) if path else "missing" for name, path in files.items()}
    )


def weights_size(model: str, *, revision: str | None = None) -> int:
    """Bytes of a model's weight files: safetensors, or else pickles."""
    files = _weight_files(model, revision)
    safe = {name: path for name, path in files.items() if name.endswith(".safetensors")}
    return sum(path.stat().st_size for path in (safe or files).values() if path is not None)


def _weight_files(model: str, revision: str | None, field: str = "model") -> dict[str, Path | None]:
    """File name → path, for every weight file, shards included."""
    paths: dict[str, Path | None] = {}
    for file in (*WEIGHT_FILES, *PICKLE_FILES):
        path = find_file(model, file, revision)
        if path is None:
            continue
        paths[file] = path
        if file.endswith(".index.json"):
            for shard in _shards(path, field):
                paths[shard] = find_file(model, shard, revision)
    return paths


def _shards(index: Path, field: str) -> list[str]:
    """The files named by an index, sorted; ModelError if it is not an index."""
    try:
        content = json.loads(index.read_text("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise _no_index(field, index, first_line(error)) from error
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise _no_index(field, index, "it has no weight_map")
    for name in names.values():
        # A file name, not a path: an index must not point elsewhere.
        if not isinstance(name, str) or Path(name).name != name:
            raise _no_index(field, index, f"{name!r:.60} is not a file name")
    return sorted(set(names.values()))


def _no_index(field: str, index: Path, reason: str) -> ModelError:
    return ModelError(
        field, str(index), f"is not an index of weights ({reason})", "use an undamaged checkpoint"
    )


def refuse_pickle(model: str, field: str, revision: str | None, allow_pickle: bool) -> None:
    """Raise ModelError if a model's weights exist only as a pickle, unless the recipe allows pickles."""
    if any(find_file(model, file, revision) for file in WEIGHT_FILES):
        return
    pickles = [file for file in PICKLE_FILES if find_file(model, file, revision)]
    if pickles and not allow_pickle:
        raise ModelError(
            field,
            model,
            f"its weights exist only as a pickle ({pickles[0]}), which can run code when opened",
            f"convert it to safetensors, or, if you trust it, set {field}.allow_pickle: true",
        )


def find_file(model: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a model's folder, or of its repository on the hub if that can be reached; else None."""
    if Path(model).is_dir():
        path = Path(model) / file
        return path if path.is_file() else None
    try:
        cached = cached_file(
            model,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return None
    return Path(cached) if cached else None


def first_line(error: BaseException) -> str:
    """An error's first line, cut to 200 characters; its type if it has no message."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
