"""Paths in recipes: `~` is the home folder wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polydistill.errors import RecipeError


def expand_home(value: str, field: str) -> str:
    """A path whose leading `~` is the home folder, as a shell has it; any other string as it is.

    Raises RecipeError where there is no such home.
    """
    if not (value == "~" or value.startswith(("~/", "~\\"))):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        raise RecipeError(field, value, f"has no home folder ({error})", "write the whole path") from error


def with_home(values: Any, field: str = "") -> Any:
    """Settings with every path in them expanded (see `expand_home`): no other setting begins with `~/`.

    One place for all of them. Libraries disagree: some expand `~` and some make a folder of that name.
    """
    if isinstance(values, str):
        return expand_home(values, field or "recipe")
    if isinstance(values, dict):
        return {key: with_home(value, f"{field}.{key}".lstrip(".")) for key, value in values.items()}
    if isinstance(values, list):
        return [with_home(value, f"{field}[{index}]") for index, value in enumerate(values)]
    return values
