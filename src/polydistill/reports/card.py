"""The model card of a student: what it is, what it was made from, how to load it."""

from __future__ import annotations

from typing import Any

from polydistill import __version__
from polydistill.config import AnyRecipe, MergeRecipe


def model_card(recipe: AnyRecipe, record: dict[str, Any]) -> str:
    """Markdown with the hub's metadata block.

    record  where the initial weights came from
    Nothing in it changes between two runs of the same recipe.
    """
    languages = list(recipe.languages)
    lines = ["---", "language:", *(f"- {language}" for language in languages), "library_name: transformers",
             "pipeline_tag: fill-mask", "tags:", "- polydistill", "- masked-lm"]  # fmt: skip
    if isinstance(recipe, MergeRecipe):
        names = [teacher.model for teacher in recipe.teachers.values() if not _is_local(teacher.model)]
        lines += ["base_model:", *(f"- {name}" for name in names)] if names else []
    lines += ["---", "", f"# {recipe.name}", ""]
    if isinstance(recipe, MergeRecipe):
        lines.append(
            f"A multilingual masked language model for {', '.join(languages)}, merged from "
            f"{len(recipe.teachers)} teachers by polydistill {__version__} (MergeDistill, Khanuja et al. 2021)."
        )
        lines += ["", "| language | teachers |", "|---|---|"]
        lines += [f"| {language} | {', '.join(s.teachers)} |" for language, s in recipe.languages.items()]
        lines += ["", f"Labels: {recipe.distillation.labels}; initial weights: {record['init']}."]
    else:
        lines.append(
            f"A masked language model for {', '.join(languages)}, pre-trained by polydistill {__version__}."
        )
    lines += [
        "",
        "```python",
        "from transformers import AutoModelForMaskedLM, AutoTokenizer",
        "",
        'model = AutoModelForMaskedLM.from_pretrained("FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")  # reads every language',
    ]
    if isinstance(recipe, MergeRecipe):
        lines.append(
            f'own = AutoTokenizer.from_pretrained("FOLDER/tokenizer/{languages[0]}")  '
            f"# splits {languages[0]} as its teacher does"
        )
    lines += [
        "```", "",
        "## Licence and data", "",
        "A student inherits the terms of its teachers' weights and of its training text: state them here before "
        "you publish it.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _is_local(name: str) -> bool:
    """Whether a teacher is a folder on somebody's machine, whose path is nobody else's business."""
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or "\\" in name
