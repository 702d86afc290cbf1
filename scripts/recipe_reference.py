"""Write docs/recipes.md from the recipe models; with --check, say whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from polydistill.config.balance import BalancedLanguage, BalancedStudent, BalanceRecipe
from polydistill.config.extract import ExtractRecipe, LossWeight
from polydistill.config.finetune import PRESETS as FINETUNING_PRESETS
from polydistill.config.finetune import FinetunedModel, FinetuneRecipe, Task, TaskData
from polydistill.config.grid import GridRecipe
from polydistill.config.load import presets
from polydistill.config.merge import Language, MergeRecipe
from polydistill.config.pretrain import PretrainLanguage, PretrainRecipe
from polydistill.config.probe import ProbedModel, ProbeRecipe, TaggedData
from polydistill.config.shared import Source, Teacher
from polydistill.training.arguments import FINETUNING, defaults

TARGET = Path(__file__).parent.parent / "docs" / "recipes.md"


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
        return f"`{value.first:g}`"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, dict) and any(isinstance(one, BaseModel) for one in value.values()):
        return ", ".join(f"`{name}`" for name in value)
    if value is None or value is PydanticUndefined or value == "":
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def table(model: type[BaseModel], prefix: str) -> list[str]:
    """A section for a group of settings, and one for each group within."""
    lines = [
        f"\n## `{prefix}`\n" if prefix else "",
        (model.__doc__ or "").splitlines()[0],
        "",
        "| key | kind | default | meaning |",
        "|---|---|---|---|",
    ]
    groups = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        meaning = (field.description or "").replace("|", "\\|")
        # A loss's weight is described once, where its group ends.
        if (
            isinstance(annotation, type)
            and issubclass(annotation, BaseModel)
            and annotation is not LossWeight
        ):
            groups.append((annotation, f"{prefix}.{name}".lstrip(".")))
            meaning = meaning or (annotation.__doc__ or "").splitlines()[0]
        lines.append(f"| `{name}` | {kind(annotation)} | {default(field)} | {meaning} |")
    for annotation, place in groups:
        lines += table(annotation, place)
    return lines


def finetuning_presets() -> list[str]:
    """The hyper-parameters that fine-tuning starts from."""
    lines = [
        "\n## `preset` (finetune)\n",
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


def reference() -> str:
    """The whole page."""
    lines = [
        "# Recipe reference",
        "",
        "Made by `scripts/recipe_reference.py` from the models in `src/polydistill/config`; `make check` says when it "
        "is out of date. `polydistill plan RECIPE` prints every setting that a recipe resolves to.",
        "",
        "A recipe may extend a preset or another file: `extends: NAME`. `null` takes away an entry that the extended one has, such as a student. `--set a.b=c` overrides one setting. Presets:",
        "",
        *(f"- `{name}`: {line}" for name, line in presets().items()),
        "",
        "# `recipe: merge`",
        "",
        *table(MergeRecipe, ""),
        *table(Teacher, "teachers.NAME"),
        *table(Language, "languages.NAME"),
        *table(Source, "languages.NAME.text[i]"),
        "",
        "# `recipe: extract`",
        "",
        *table(ExtractRecipe, ""),
        *table(LossWeight, "losses.NAME"),
        "",
        "# `recipe: balance`",
        "",
        *table(BalanceRecipe, ""),
        *table(BalancedLanguage, "languages.NAME (balance)"),
        *table(BalancedStudent, "students.NAME"),
        "",
        "# `recipe: pretrain`",
        "",
        *table(PretrainRecipe, ""),
        *table(PretrainLanguage, "languages.NAME (pretrain)"),
        "",
        "# `recipe: probe`",
        "",
        *table(ProbeRecipe, ""),
        *table(ProbedModel, "models.NAME"),
        *table(TaggedData, "tasks.TASK.LANGUAGE"),
        "",
        "# `recipe: grid`",
        "",
        *table(GridRecipe, ""),
        "",
        "# `recipe: finetune`",
        "",
        *table(FinetuneRecipe, ""),
        *table(FinetunedModel, "models.NAME (finetune)"),
        *table(Task, "tasks.NAME"),
        *table(TaskData, "tasks.NAME.data.LANGUAGE"),
        *finetuning_presets(),
        "\n## `training`\n",
        "Arguments of `transformers.TrainingArguments` by their own names. What a recipe does not set starts from:",
        "",
        f"(`finetune`: its presets above, and {', '.join(f'`{name}: {value}`' for name, value in FINETUNING.items())}.)",
        "",
        "| argument | default |",
        "|---|---|",
        *(
            f"| `{name}` | `{'where the machine computes in it' if name == 'bf16' else 'where there is no GPU' if name == 'use_cpu' else 'where there is a GPU' if name == 'dataloader_pin_memory' else value}` |"
            for name, value in defaults().items()
        ),
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
