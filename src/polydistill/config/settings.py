"""The base class and the common types of settings."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

# Endings of a run's temporary files and folders (`artefacts.artefact`), and of its files: a folder `de.old`
# would be removed as a leftover of `de`, and a language `tokenizer.json` would take the place of that file.
RESERVED_ENDINGS = (
    ".partial",
    ".old",
    ".tmp",
    ".lock",
    ".arrow",
    ".bin",
    ".html",
    ".json",
    ".jsonl",
    ".log",
    ".md",
    ".model",
    ".npy",
    ".npz",
    ".safetensors",
    ".txt",
    ".yaml",
)
# Any folder of this name contains checkpoints, and is not an artefact.
CHECKPOINTS = "checkpoints"


def _as_free_name(name: str) -> str:
    """A name that no file or folder of the run itself has; ValueError otherwise."""
    # Some file systems ignore case.
    lower = name.lower()
    for ending in RESERVED_ENDINGS:
        if lower.endswith(ending):
            raise ValueError(
                f"names that end in {ending} are reserved for a run's own files; choose another name"
            )
    if lower == CHECKPOINTS:
        raise ValueError(f"the name {CHECKPOINTS} is reserved for a run's own folders; choose another name")
    return name


def _as_text_name(name: str) -> str:
    """The name of a further evaluation text; tables show it beside the names of the corpus' own parts."""
    if name in ("held_out", "train"):
        raise ValueError(
            f"the name {name} is reserved for a part of the language's own text; choose another name"
        )
    return name


def _as_line(text: str) -> str:
    """A text without line ends and control characters; ValueError otherwise."""
    # YAML treats line and paragraph separators as line ends.
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in text):
        raise ValueError("contains a line end or a control character; write it on one line")
    return text


# A name becomes a folder's name, so it must not lead out of the run's folder.
Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"), AfterValidator(_as_free_name)
]
TextName = Annotated[Name, AfterValidator(_as_text_name)]
# A name that others define, on one line: it goes into a card's metadata, where a second line would be
# metadata too.
Line = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_as_line)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, and values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def check_names(names: Iterable[str], reserved: Mapping[str, str], field: str) -> None:
    """Raise ValueError for a name with a meaning of its own in a run's folders, results or tables.

    reserved  name → its meaning
    field     where the names are in the recipe
    """
    for name in names:
        if name in reserved:
            raise ValueError(
                f"{field}.{name}: the name is reserved for {reserved[name]}; choose another name"
            )
