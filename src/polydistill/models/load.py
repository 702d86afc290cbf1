"""Loading masked language models safely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.utils import cached_file

from polydistill.errors import ModelError, NumericsError
from polydistill.files import fingerprint, hash_file

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def load_masked_lm(
    model: str,
    *,
    name: str = "",
    revision: str | None = None,
    allow_pickle: bool = False,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> Any:
    """A masked language model in evaluation mode, its weights from safetensors.

    dtype  transformers takes a file's own (a float16 file stays float16 on a processor): here it is said; `auto`
           for the file's own
    Raises ModelError if nothing is there, if the weights are only there as a pickle, if the architecture has
    no MLM head, or if the file leaves weights unset; NumericsError if a weight is not finite.
    """
    field = f"teachers.{name}" if name else "model"
    refuse_pickle(model, field, revision, allow_pickle)
    try:
        loaded, info = AutoModelForMaskedLM.from_pretrained(
            model,
            revision=revision,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=None if allow_pickle else True,
            weights_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors and pickle raise kinds of their own for a damaged file
        raise ModelError(
            field,
            model,
            f"cannot be loaded as a masked language model ({first_line(error)})",
            "give a folder or a hub name of a model with an MLM head (such as BertForMaskedLM)",
        ) from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", []))
    if missing:
        raise ModelError(
            field,
            model,
            f"its file lacks weights that a masked language model needs ({', '.join(missing[:3])})",
            "it was saved without its MLM head, or is another kind of model: use the checkpoint with the head",
        )
    for key, tensor in loaded.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise NumericsError(
                field, model, f"its weight {key} has NaN or infinity in it", "use an undamaged checkpoint"
            )
    return loaded.eval()


def model_config(model: str, *, name: str = "", revision: str | None = None) -> Any:
    """A model's configuration, without its weights."""
    try:
        return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"teachers.{name}" if name else "model",
            model,
            f"cannot be loaded ({first_line(error)})",
            "give a folder with config.json, or a name on the hub (and unset HF_HUB_OFFLINE)",
        ) from error


def weights_fingerprint(model: str, *, revision: str | None = None) -> str:
    """What a model's weights are, by content: the hash of its weight files and configuration."""
    files = _weight_files(model, revision)
    config = _find(model, "config.json", revision)
    hashes = {} if config is None else {"config.json": hash_file(config)}
    return fingerprint(
        hashes | {name: hash_file(path) if path else "missing" for name, path in files.items()}
    )


def weights_size(model: str, *, revision: str | None = None) -> int:
    """Bytes of a model's weight files: safetensors, or a pickle where there are none."""
    files = _weight_files(model, revision)
    safe = {name: path for name, path in files.items() if name.endswith(".safetensors")}
    return sum(path.stat().st_size for path in (safe or files).values() if path is not None)


def _weight_files(model: str, revision: str | None) -> dict[str, Path | None]:
    """File's name → where it is, for every weight file, shards included."""
    found: dict[str, Path | None] = {}
    for file in (*WEIGHT_FILES, *PICKLE_FILES):
        path = _find(model, file, revision)
        if path is None:
            continue
        found[file] = path
        if file.endswith(".index.json"):
            for shard in sorted(set(json.loads(path.read_text("utf-8"))["weight_map"].values())):
                found[shard] = _find(model, shard, revision)
    return found


def refuse_pickle(model: str, field: str, revision: str | None, allow_pickle: bool) -> None:
    """Raise ModelError if a model's weights are only there as a pickle, unless the recipe accepts that."""
    if any(_find(model, file, revision) for file in WEIGHT_FILES):
        return
    pickles = [file for file in PICKLE_FILES if _find(model, file, revision)]
    if pickles and not allow_pickle:
        raise ModelError(
            field,
            model,
            f"its weights are only there as a pickle ({pickles[0]}), which can run code when opened",
            f"convert it to safetensors, or, if you trust it, set {field}.allow_pickle: true",
        )


def _find(model: str, file: str, revision: str | None) -> Path | None:
    if Path(model).is_dir():
        path = Path(model) / file
        return path if path.is_file() else None
    try:
        found = cached_file(model, file, revision=revision, _raise_exceptions_for_missing_entries=False,
                            _raise_exceptions_for_connection_errors=False)  # fmt: skip
    except (OSError, ValueError):
        return None
    return Path(found) if found else None


def first_line(error: BaseException) -> str:
    """What an error says, cut to a line."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
