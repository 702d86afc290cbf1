"""Sections that model cards share, and what a model is called in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from polydistill.config.merge import MergeRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.shared import Card
from polydistill.config.yaml_text import parse_yaml
from polydistill.disk import Json


def is_local(name: str) -> bool:
    """Whether a model is a local folder, whose path no card shows."""
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or "\\" in name


# Folders of runs and of downloads that say nothing of a model.
_PLAIN = {"final", "student", "teacher", "model", "models", "merge", "teachers", "students", "."}


def shown_name(model: str) -> str:
    """A model's name for readers: a hub name, or the last telling part of a local path."""
    if not is_local(model):
        return model
    parts = [part for part in Path(model).parts if part not in _PLAIN and not part.startswith("checkpoint")]
    return parts[-1] if parts and parts[-1] != "/" else Path(model).name


def training_section(recipe: MergeRecipe | PretrainRecipe, more: Mapping[str, str]) -> list[str]:
    """The section on training: what the recipe says; every setting is in its recipe.yaml."""
    settings = {
        "text": f"sequences of up to {recipe.corpora.max_length} tokens, smoothing "
        f"{recipe.corpora.smoothing_alpha:g}",
        **more,
        **{name.replace("_", " "): f"{value}" for name, value in recipe.training.items() if _plain(value)},
        "seed": f"{recipe.seed}",
    }
    return ["## Training", "", *(f"- {name}: {value}" for name, value in settings.items()), ""]


def _plain(value: object) -> bool:
    return isinstance(value, int | float | str)


def front_matter(
    languages: Sequence[str],
    card: Card,
    teachers: Sequence[str],
    *,
    relation: str | None = None,
    pipeline: str = "fill-mask",
    library: str = "transformers",
) -> list[str]:
    """The hub's metadata block.

    relation  to the teachers, in the hub's words: `merge`, `finetune`, `quantized`
    pipeline  the hub's name of the task; library  of what loads the model
    """
    public = [teacher for teacher in teachers if not is_local(teacher)]
    metadata_of: Json = {"language": list(languages)}
    metadata_of |= {} if card.license is None else {"license": card.license}
    metadata_of |= {
        "library_name": library.lower(),
        "pipeline_tag": pipeline,
        "tags": ["polydistill", *(["masked-lm"] if pipeline == "fill-mask" else [])],
    }
    metadata_of |= {"base_model": public} if public else {}
    related = relation if public and (relation != "merge" or len(public) > 1) else None
    metadata_of |= {"base_model_relation": related} if related else {}
    metadata_of |= {"datasets": list(card.datasets)} if card.datasets else {}
    return [*metadata_block(metadata_of), ""]


def metadata_block(values: Json) -> list[str]:
    """Lines of a metadata block: YAML, so that no value can inject a key."""
    dumped = yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=10**6)
    return ["---", *dumped.splitlines(), "---"]


def split_card(card: str) -> tuple[Json, str]:
    """(the values of a card's metadata block, the text after it); ({}, card) without a valid block."""
    block = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", card, re.DOTALL)
    try:
        front = parse_yaml(block.group(1)) if block else None
    except yaml.YAMLError:
        front = None
    return (front, card[block.end() :]) if block and isinstance(front, dict) else ({}, card)


def licence_section(card: Card, what: str) -> list[str]:
    """The section on terms; `what` states which ones the model inherits."""
    stated = (
        "State them here before you publish it (`card.license`)."
        if card.license is None
        else f"Published under {card.license}."
    )
    return ["## Licence and data", "", f"{what} {stated}", ""]


TERMS = "A student inherits the terms of its teachers' weights and of its training text."
READS_ALL = "  # reads every language"


def loading_section(comment: str = "", *more: str) -> list[str]:
    """Code that loads the model: a comment on its tokenizer, and more lines."""
    return [
        "```python",
        "from transformers import AutoModelForMaskedLM, AutoTokenizer",
        "",
        'model = AutoModelForMaskedLM.from_pretrained("FOLDER")',
        f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"){comment}',
        *more,
        "```",
        "",
    ]
