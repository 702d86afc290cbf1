"""Paths in recipes: a leading `~` is the home folder in every setting."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel

from polydistill.errors import ModelError, RecipeError

# A hub that answers within this time is there.
CONNECT_SECONDS = 5


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
