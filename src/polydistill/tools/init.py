"""A first recipe: from teachers and texts to a YAML file that `plan` accepts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from polydistill.config.load import parse_recipe
from polydistill.config.paths import check_models
from polydistill.config.shared import TextRecipe
from polydistill.corpora.sources import check_texts, source_bytes
from polydistill.disk import read_json, write_text
from polydistill.errors import RecipeError

MAX_LENGTH, BATCH = 128, 32
# Models like RoBERTa count positions from 2.
SPARE_POSITIONS = 2
# Bytes of compressed or plain text that make about one token.
TOKEN_BYTES = 4
FEWEST_STEPS, MOST_STEPS = 200, 20_000

TEMPLATE = """\
# Made by `polydistill init`. `polydistill plan --full` prints every setting with its value.
recipe: merge
name: {name}
teachers:{teachers}
languages:{languages}
corpora: {{max_length: {length}}}
# From random weights, with embedding rows from the teachers: small, and fast from the first step.
# `{{init: teachers, encoder_from: {first}}}` copies that teacher's encoder: better sooner, and as slow as the
# teacher. `polydistill plan` prints the seconds of a step of either.
student:
  model_type: modernbert
  config: {{hidden_size: 256, num_hidden_layers: 6, num_attention_heads: 4, intermediate_size: 384}}
  # All pieces of all teachers. `learned` makes a smaller vocabulary from your text (tokenizer.size).
  vocabulary: union
# Teachers' predictions fade to the text's own words during training.
distillation: {{labels: both}}
training:
  # About one pass over the text. More is better, until the held-out figures of the report stop to rise.
  max_steps: {steps}
  per_device_train_batch_size: {batch}
  learning_rate: 2e-3
"""


def write_first_recipe(
    output: Path,
    teachers: Mapping[str, str],
    texts: Mapping[str, Sequence[str]],
    taught: Mapping[str, Sequence[str]],
) -> Path:
    """Write a merge's recipe; returns its path.

    teachers  name → folder or hub name
    texts     language → files, folders or globs
    taught    language → names of its teachers; by default the teacher of the language's name, or the only one
    Raises UserError for what a run would refuse: a missing folder or text, a language without a teacher, a
    file that exists.
    """
    if output.exists():
        raise RecipeError("output", str(output), "exists", "choose another file, or remove it")
    if not teachers or not texts:
        raise RecipeError(
            "init",
            None,
            f"there is no {'teacher' if not teachers else 'text'}",
            "pass --teacher NAME=MODEL and --text LANGUAGE=PATH",
        )
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", output.stem).strip("-") or "mine"
    languages = {
        language: {
            "text": paths[0] if len(paths) == 1 else [{"path": path} for path in paths],
            "teachers": teachers_of(language, teachers, taught),
        }
        for language, paths in texts.items()
    }
    values = {"name": name, "teachers": dict(teachers), "languages": languages}
    recipe = parse_recipe(values)
    assert isinstance(recipe, TextRecipe)
    check_models(recipe)
    check_texts(recipe)
    size = sum(source_bytes(sources, field=field) for field, sources in recipe.texts.items())
    length = min([MAX_LENGTH, *map(_positions, teachers.values())])
    steps = round(size / TOKEN_BYTES / (length * BATCH))
    made = TEMPLATE.format(
        name=name,
        teachers=_block(values["teachers"]),
        languages=_block(languages),
        length=length,
        first=next(iter(teachers)),
        steps=min(MOST_STEPS, max(FEWEST_STEPS, steps)),
        batch=BATCH,
    )
    parse_recipe(yaml.safe_load(made))
    write_text(output, made)
    return output


def teachers_of(language: str, teachers: Mapping[str, str], taught: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of a language's teachers."""
    if language in taught:
        return list(taught[language])
    if language in teachers:
        return [language]
    if len(teachers) == 1:
        return list(teachers)
    raise RecipeError(
        f"languages.{language}",
        None,
        f"no teacher is named so, and there are {len(teachers)}",
        f"pass --teaches {language}=NAME, with one of {', '.join(teachers)}",
    )


def _positions(model: str) -> int:
    """Tokens that a local teacher takes at least; MAX_LENGTH for what its configuration does not say."""
    config = Path(model) / "config.json"
    values = read_json(config, dict) if config.is_file() else {}
    positions = values.get("max_position_embeddings")
    return max(8, positions - SPARE_POSITIONS) if isinstance(positions, int) else MAX_LENGTH


def _block(values: object) -> str:
    """A mapping as indented YAML, for the place after its key."""
    dumped = yaml.safe_dump(values, allow_unicode=True, sort_keys=False, default_flow_style=None)
    return "".join(f"\n  {line}" for line in dumped.splitlines())
