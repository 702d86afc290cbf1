"""The predictions that a finished fine-tuning keeps."""

from __future__ import annotations

import json
from pathlib import Path

from polydistill.config.finetune import Task
from polydistill.disk import Json
from polydistill.tasks.scores import Items, items_of
from polydistill.tasks.squad import uses_mlqa


def stored_rows(folder: Path, language: str) -> list[Json]:
    """A finished job's predictions for a language."""
    text = (folder / "predictions" / f"{language}.jsonl").read_text("utf-8")
    # Not splitlines: an answer may hold a Unicode line separator.
    return [json.loads(line) for line in text.split("\n") if line]


def predicted_items(folder: Path, task: Task, language: str) -> Items:
    """A finished job's test items in a language, as counts."""
    mlqa = uses_mlqa(language, task.normalisation)
    return items_of(task.kind, stored_rows(folder, language), language, mlqa=mlqa)
