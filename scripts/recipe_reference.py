"""Write docs/recipes.md from the recipe models; with --check, say whether it is up to date."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from polydistill.config.balance import BalancedLanguage, BalancedStudent, BalanceRecipe
from polydistill.config.embed import EmbedLanguage, EmbedRecipe, ParallelSentences, ScoredPairs
from polydistill.config.extract import ExtractRecipe
from polydistill.config.finetune import PRESETS as FINETUNING_PRESETS
from polydistill.config.finetune import FinetunedModel, FinetuneRecipe, Task, TaskData
from polydistill.config.grid import GridRecipe
from polydistill.config.load import presets
from polydistill.config.merge import Language, MergeRecipe
from polydistill.config.pretrain import PretrainLanguage, PretrainRecipe
from polydistill.config.probe import ProbedModel, ProbeRecipe, Probing, TaggedData
from polydistill.config.scoring import Ray, Scoring
from polydistill.config.shared import (
    Card,
    Corpora,
    Evaluation,
    LossWeight,
    Masking,
    Model,
    Source,
    Teacher,
    WordPiece,
)
from polydistill.config.start import Start
from polydistill.training.arguments import FINETUNING, defaults

# Defaults that the machine decides.
MACHINES = {
    "bf16": "where the hardware supports it",
    "use_cpu": "where there is no GPU",
    "dataloader_pin_memory": "where there is a GPU",
}
TARGET = Path(__file__).parent.parent / "docs" / "recipes.md"
# A whole recipe of each kind. tests/docs parses them, as every recipe on the pages.
EXAMPLES = TARGET.parent / "examples"


def kind(annotation: Any) -> str:
    """An annotation as people read it."""
    if annotation is LossWeight:
        return "number or `{first, last, schedule}`"
    if get_origin(annotation) is Annotated:
        # What is checked beside is for no reader, and its text would hold addresses in memory.
        return kind(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return (
            annotation.__name__
            if issubclass(annotation, BaseModel)
            else {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
                annotation.__name__, annotation.__name__
            )
        )
    if get_origin(annotation) is dict:
        return "mapping"
    if get_origin(annotation) is list:
        return "list"
    inner = [
        kind(argument)
        for argument in get_args(annotation)
        if argument is not type(None)
        and not isinstance(argument, FieldInfo)
        and not hasattr(argument, "pattern")
    ]
    return " or ".join(dict.fromkeys(inner)) if inner else str(annotation)


def default(field: Any) -> str:
    """A field's default, as YAML would have it."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, LossWeight):
        changes = value.last is not None and value.schedule != "constant"
        return f"`{{first: {value.first:g}, last: {value.last:g}}}`" if changes else f"`{value.first:g}`"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, dict) and any(isinstance(entry, BaseModel) for entry in value.values()):
        return ", ".join(f"`{name}`" for name in value)
    if value is None or value is PydanticUndefined or value == "":
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


# Groups of settings that several kinds of recipe share: printed once.
SHARED = (
    Source,
    Teacher,
    Corpora,
    Masking,
    Scoring,
    Ray,
    WordPiece,
    Model,
    Start,
    Evaluation,
    Card,
    Probing,
    TaggedData,
)


def is_group(annotation: object) -> TypeGuard[type[BaseModel]]:
    """Whether a setting is a group of settings; a loss's weight is described once, where its group ends."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not LossWeight


def first_line(model: type[BaseModel]) -> str:
    """What a group of settings is."""
    return (model.__doc__ or "").splitlines()[0]


def anchor(heading: str) -> str:
    """A heading's anchor, on GitHub and on the site."""
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).strip().replace(" ", "-")


def table(model: type[BaseModel], heading: str, recipe: str = "", example: str = "") -> list[str]:
    """A section for a group of settings, required keys first, and one for each group within that is not
    shared.

    recipe   the kind of recipe that has the group, which makes headings unique; "" for shared groups
    example  a whole recipe in YAML, shown first
    """
    lines = [
        f"\n{heading}\n",
        first_line(model),
        *([f'\n```yaml title="{recipe}.yaml"\n{example}```'] if example else []),
        "",
        "| key | kind | default | meaning |",
        "|---|---|---|---|",
    ]
    groups = []
    fields = {name: field for name, field in model.model_fields.items() if name != "recipe"}
    for name, field in sorted(fields.items(), key=lambda item: not item[1].is_required()):
        annotation = field.annotation
        meaning = (field.description or "").replace("|", "\\|")
        shown = default(field)
        if is_group(annotation):
            meaning = meaning or first_line(annotation)
            if annotation in SHARED:
                shown = f"see [{annotation.__name__}](#{annotation.__name__.lower()})"
            else:
                path = heading.split("`")[1]
                place = f"`{name if path.startswith('recipe:') else f'{path}.{name}'}` ({recipe})"
                groups.append((annotation, f"### {place}"))
                shown = f"see [below](#{anchor(place)})"
        lines.append(f"| `{name}` | {kind(annotation)} | {shown} | {meaning} |")
    for annotation, below in groups:
        lines += table(annotation, below, recipe)
    return lines


def finetuning_presets() -> list[str]:
    """The hyper-parameters that fine-tuning starts from."""
    lines = [
        "\n## Fine-tuning presets\n",
        "| preset | kind | learning rate | epochs | warm-up | batch | length |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset, kinds in FINETUNING_PRESETS.items():
        for kind, values in kinds.items():
            names = (
                "learning_rate",
                "num_train_epochs",
                "warmup_steps",
                "per_device_train_batch_size",
                "max_length",
            )
            lines.append(
                f"| `{preset}` | `{kind}` | " + " | ".join(f"{values[name]:g}" for name in names) + " |"
            )
    return lines


# Kind → its recipe, and the entries of its mappings by their places.
RECIPES: dict[str, tuple[type[BaseModel], dict[str, type[BaseModel]]]] = {
    "merge": (MergeRecipe, {"languages.NAME": Language}),
    "extract": (ExtractRecipe, {"losses.NAME": LossWeight}),
    "balance": (BalanceRecipe, {"languages.NAME": BalancedLanguage, "students.NAME": BalancedStudent}),
    "pretrain": (PretrainRecipe, {"languages.NAME": PretrainLanguage}),
    "probe": (ProbeRecipe, {"models.NAME": ProbedModel}),
    "grid": (GridRecipe, {}),
    "finetune": (
        FinetuneRecipe,
        {"models.NAME": FinetunedModel, "tasks.NAME": Task, "tasks.NAME.data.LANGUAGE": TaskData},
    ),
    "embed": (
        EmbedRecipe,
        {
            "languages.NAME": EmbedLanguage,
            "evaluation.retrieval.NAME": ParallelSentences,
            "evaluation.similarity.NAME": ScoredPairs,
        },
    ),
}


def item(text: str) -> str:
    """A list's item in lines of the pages' width."""
    return textwrap.fill(f"- {text}", 118, subsequent_indent="  ", break_on_hyphens=False)


def contents() -> list[str]:
    """Where things are on the page."""
    shared = ", ".join(f"[{group.__name__}](#{anchor(group.__name__)})" for group in SHARED)
    return [
        *(f"[`recipe: {name}`](#recipe-{name}): {first_line(model)}" for name, (model, _) in RECIPES.items()),
        f"[Shared groups](#shared-groups), described once: {shared}",
        "[Fine-tuning presets](#fine-tuning-presets)",
        "[`training`](#training): arguments of `transformers.TrainingArguments`",
    ]


def reference() -> str:
    """The whole page."""
    lines = [
        "# Recipe reference",
        "",
        "Made by `scripts/recipe_reference.py` from the models in `src/polydistill/config`. `make check` "
        "fails when it is",
        "out of date. `polydistill plan --full RECIPE` prints every setting that a recipe resolves to.",
        "",
        "A recipe may extend a preset or another file: `extends: NAME`. `null` takes away an entry that the "
        "extended one",
        "has, such as a student. `--set a.b=c` overrides one setting. Presets:",
        "",
        *(item(f"`{name}`: {line}") for name, line in presets().items()),
        "",
        "## Contents",
        "",
        *map(item, contents()),
        "",
        "The examples read models, texts and labelled data from folders beside them.",
    ]
    for name, (recipe, entries) in RECIPES.items():
        lines += table(recipe, f"## `recipe: {name}`", name, (EXAMPLES / f"{name}.yaml").read_text("utf-8"))
        for place, entry in entries.items():
            lines += table(entry, f"### `{place}` ({name})", name)
    lines += ["", "## Shared groups"]
    for group in SHARED:
        lines += table(group, f"### {group.__name__}")
    lines += [
        *finetuning_presets(),
        "\n## `training`\n",
        "Arguments of `transformers.TrainingArguments` by their own names. What a recipe does not set starts "
        "from:",
        "",
        textwrap.fill(
            "(`finetune`: its presets above, and "
            f"{', '.join(f'`{name}: {value}`' for name, value in FINETUNING.items())}.)",
            118,
        ),
        "",
        "| argument | default |",
        "|---|---|",
        *(f"| `{name}` | `{MACHINES.get(name, value)}` |" for name, value in defaults().items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    made = reference()
    if "--check" in sys.argv:
        if not TARGET.is_file() or TARGET.read_text("utf-8") != made:
            sys.exit(f"{TARGET.name} is out of date: run `make docs`")
    else:
        TARGET.write_text(made, "utf-8")
        print(TARGET)
