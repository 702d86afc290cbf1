"""Paths in recipes: a leading `~` is the home folder in every setting."""

from __future__ import annotations

from pathlib import Path

from polydistill.errors import RecipeError


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
