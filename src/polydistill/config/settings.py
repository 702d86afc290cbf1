"""What all settings are made of."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

# Endings of what a run puts beside a folder or a file while it writes it (`artefacts.artefact`), and of its files: the folder
# `de.old` is removed as what is left of `de`, and a language `tokenizer.json` lies where that file belongs.
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
# Folders of this name hold checkpoints wherever they are, and are no artefacts.
CHECKPOINTS = "checkpoints"


def _as_free_name(name: str) -> str:
    """A name that no folder or file of a run's own has; ValueError otherwise."""
    # File systems may not tell capital letters from small ones.
    lower = name.lower()
    ending = next((one for one in RESERVED_ENDINGS if lower.endswith(one)), None)
    if ending is not None:
        raise ValueError(f"a name that ends in {ending} is kept for a run's own files; name it otherwise")
    if lower == CHECKPOINTS:
        raise ValueError(f"the name {CHECKPOINTS} is kept for a run's own folders; name it otherwise")
    return name


def _as_text_name(name: str) -> str:
    """A further evaluation text's name, which stands beside those of the corpus' own texts in tables."""
    if name in ("held_out", "train"):
        raise ValueError(f"the name {name} stands for a part of the language's own text; name it otherwise")
    return name


def _as_line(text: str) -> str:
    """A text without line ends and control characters; ValueError otherwise."""
    # Line and paragraph separators are line ends to YAML.
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in text):
        raise ValueError("holds a line end or a control character; write it in one line")
    return text


# A name becomes a folder's name, so it must not be able to leave the run's folder.
Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"), AfterValidator(_as_free_name)
]
TextName = Annotated[Name, AfterValidator(_as_text_name)]
# A name that others give, in one line: a card's metadata has it, and a second line would be metadata too.
Line = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_as_line)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def check_names(names: Iterable[str], reserved: Mapping[str, str], field: str) -> None:
    """Raise ValueError for a name that stands for something else in a run's folders, results or tables.

    reserved  name → what it stands for
    field     where the names are in the recipe
    """
    for name in names:
        if name in reserved:
            raise ValueError(f"{field}.{name}: the name stands for {reserved[name]}; name it otherwise")
