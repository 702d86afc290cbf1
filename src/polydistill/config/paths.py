"""Paths in recipes: a leading `~` is the home folder in every setting, a leading `$data` the data root."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from polydistill.errors import ModelError, RecipeError

# A hub that answers within this time is there.
CONNECT_SECONDS = 5
# At the beginning of a path: the folder that `data` or the variable names.
DATA, DATA_VARIABLE = "$data", "POLYDISTILL_DATA"


def expand_home(value: str, field: str) -> str:
    """A path with a leading `~` replaced by the home folder, as in a shell; any other string unchanged.

    Raises RecipeError if there is no such home.
    """
    if not (value == "~" or value.startswith(("~/", "~\\"))):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        raise RecipeError(field, value, f"has no home folder ({error})", "write the full path") from error


def with_home(values: object, field: str = "") -> object:
    """Settings with every path in them expanded (see `expand_home`): no other setting begins with `~/`.

    Done here for all settings, because libraries disagree: some expand `~`, others create a folder of that
    name.
    """
    if isinstance(values, str):
        return expand_home(values, field or "recipe")
    if isinstance(values, dict):
        return {key: with_home(value, f"{field}.{key}".lstrip(".")) for key, value in values.items()}
    if isinstance(values, list):
        return [with_home(value, f"{field}[{index}]") for index, value in enumerate(values)]
    return values


def data_root(values: Mapping[str, object]) -> str:
    """The data root of a recipe's settings: its `data`, otherwise POLYDISTILL_DATA; "" if neither is set."""
    root = values.get("data") or os.environ.get(DATA_VARIABLE, "")
    return expand_home(root, "data") if isinstance(root, str) else ""


def with_data(values: Mapping[str, Any], *, keep: Collection[str] = ()) -> dict[str, Any]:
    """A recipe's settings with the data root in place of every leading `$data`; `data` then names the root.

    keep  settings that stay as they are: the runs of a grid, which may have a root of their own
    A relative root is relative to the working folder, as every path of a recipe. Raises RecipeError for the
    first path with `$data` if there is no root.
    """
    root = data_root(values)
    placed = {
        key: value if key in keep or key == "data" else _with_root(value, root, str(key))
        for key, value in values.items()
    }
    # The run's recipe.yaml then reads without the variable.
    return placed if placed == values or not root else placed | {"data": root}


def _with_root(value: object, root: str, field: str) -> object:
    if isinstance(value, dict):
        return {key: _with_root(inner, root, f"{field}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_root(inner, root, f"{field}[{index}]") for index, inner in enumerate(value)]
    if not (isinstance(value, str) and (value == DATA or value.startswith(f"{DATA}/"))):
        return value
    if not root:
        raise RecipeError(
            field,
            value,
            f"{DATA} stands for the folder of public data and models, and none is set",
            f"set {DATA_VARIABLE}=FOLDER, or pass --set data=FOLDER; `Data of the recipes` in the "
            "documentation says what the folder holds and what fetches it",
        )
    return root.rstrip("/") + value.removeprefix(DATA) if value != DATA else root


def without_root(value: object, roots: Collection[str]) -> object:
    """Settings with `$data` in place of a data root in their paths: equal for recipes whose roots differ."""
    if isinstance(value, dict):
        return {key: without_root(inner, roots) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_root(inner, roots) for inner in value]
    for root in roots if isinstance(value, str) else ():
        if root and (value == root or str(value).startswith(f"{root.rstrip('/')}/")):
            return DATA + str(value).removeprefix(root.rstrip("/"))
    return value


def refuse_missing(model: str, field: str) -> None:
    """Raise ModelError for a model's folder that does not exist; a name that the hub may have passes.

    A hub name has at most one slash, and no folder of this machine is in front of it.
    """
    place = Path(model)
    local = model.startswith(("/", "./", "../", "~")) or model.count("/") > 1
    remedy = f"check the path; it is relative to {Path.cwd()}"
    if "/" in model and not local and place.parent.is_dir():
        local = True
        remedy += f". For the model of that name on the hub, work where no folder {place.parent} is"
    if local and not place.exists():
        raise ModelError(field, model, "no such folder", remedy)


def check_models(recipe: BaseModel) -> None:
    """Raise ModelError for a recipe's first model whose folder does not exist; loads nothing."""
    for field, model in _models(recipe, ""):
        refuse_missing(model, field)


def without_hub(recipe: BaseModel) -> str | None:
    """Keep the libraries from a hub that cannot be reached; returns a note on it, or None.

    They would retry each file for half a minute. Takes effect only before `huggingface_hub` is imported.
    """
    proxies = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    if "HF_HUB_OFFLINE" in os.environ or any(name in os.environ for name in proxies):
        return None
    if all(Path(model).exists() for _, model in _models(recipe, "")):
        return None
    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=CONNECT_SECONDS).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return f"{hub.hostname} cannot be reached: models come from this machine's cache"
    return None


def _models(part: object, field: str) -> Iterator[tuple[str, str]]:
    """(field, value) of every `model` and tokenizer of a model in a recipe."""
    if isinstance(part, BaseModel):
        model = getattr(part, "model", None)
        if isinstance(model, str):
            yield field, model
            tokenizer = getattr(part, "tokenizer", None)
            if isinstance(tokenizer, str) and "/" in tokenizer:
                yield f"{field}.tokenizer", tokenizer
        for name in type(part).model_fields:
            yield from _models(getattr(part, name), f"{field}.{name}".lstrip("."))
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from _models(value, f"{field}.{key}")
    elif isinstance(part, list):
        for index, value in enumerate(part):
            yield from _models(value, f"{field}[{index}]")
