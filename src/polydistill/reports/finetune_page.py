"""The page of a fine-tuning run: each task's scores coloured by RDT, beside published ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from polydistill.disk import Json, read_json
from polydistill.errors import RunFolderError

KINDS = {
    "ner": "Entities",
    "pos": "Parts of speech",
    "classification": "Classes of texts",
    "pairs": "Pairs of texts",
    "choice": "Choices",
    "qa": "Questions",
}
METRICS = {
    "accuracy": ("accuracy", "Share of items that are right."),
    "macro_f1": ("macro-F1", "Mean of each label's F1: rare labels count as much as common ones."),
    "entity_f1": ("entity F1", "An entity counts as found if its kind and exact span of words are right."),
    "f1": ("F1", "Overlap in words of the prediction with the best-matching right answer."),
    "exact": ("exact match", "Share of predictions that equal a right answer."),
}
# No model has this name: names have no brackets.
OWN_TEACHERS = "(teachers)"
VERDICTS = {"within": "yes", "below": "no", "open": "open"}


def gather_finetune(run: Path) -> Json:
    """Tables of the run's models, and published tables of the same kinds of tasks."""
    results = read_json(run / "evaluation" / "finetune.json")
    if "summary" not in results:
        raise RunFolderError(
            "folder",
            str(run),
            f"has done {results['done']} of {results['jobs']} jobs",
            "run the recipe to its end",
        )
    tasks = []
    for task, metrics in results["summary"].items():
        about = results["tasks"][task]
        for metric, models in metrics.items():
            languages = list(dict.fromkeys(language for cells in models.values() for language in cells))
            rdt = results["rdt"][task][metric]
            rows = joined(models, results.get("teachers", {}))
            tasks.append(
                {
                    "name": f"{task}: {METRICS[metric][0]}",
                    "meaning": f"{KINDS[about['kind']]}, {about['setting'].replace('_', ' ')}. "
                    f"{METRICS[metric][1]}",
                    "languages": languages,
                    # A language has the same teacher for all models.
                    "teachers": {
                        language: next(
                            (
                                of_model[language]["teacher"]
                                for of_model in rdt.values()
                                if language in of_model
                            ),
                            None,
                        )
                        for language in languages
                    },
                    "rows": {
                        model: _row(cells, rdt.get(model, {}), languages) for model, cells in rows.items()
                    },
                    "has_rdt": bool(rdt),
                }
            )
    kinds = {about["kind"] for about in results["tasks"].values()}
    return {
        "results": results,
        "tasks": tasks,
        "averages": results["rdt_average"],
        "verdicts": VERDICTS,
        "published": published_tables(kinds),
        "shade": shade,
    }


def joined(models: Mapping[str, Json], teachers: Mapping[str, str]) -> dict[str, Json]:
    """Model → language → cell. Monolingual teachers share a row, as in papers."""
    own = {
        model: cells
        for model, cells in models.items()
        if len(cells) == 1 and all(teachers.get(language) == model for language in cells)
    }
    if len(own) < 2:
        return dict(models)
    rest = {model: cells for model, cells in models.items() if model not in own}
    return {
        **rest,
        OWN_TEACHERS: {language: cell for cells in own.values() for language, cell in cells.items()},
    }


def _row(scores: Json, rdt: Json, languages: list[str]) -> Json:
    return {
        "cells": [{"score": scores.get(language), "rdt": rdt.get(language)} for language in languages],
        "all": rdt.get("all"),
    }


def published_tables(kinds: set[str]) -> list[Json]:
    """Published tables, cut to these kinds of tasks, with RDT of scores whose teacher's is known."""
    text = (resources.files("polydistill.reports") / "published.json").read_text("utf-8")
    tables = []
    for table in json.loads(text):
        kept = [place for place, column in enumerate(table["columns"]) if column["kind"] in kinds]
        groups = []
        for group in table["groups"]:
            scores = {row["model"]: row["scores"] for row in group["rows"]}
            rows = []
            for row in group["rows"]:
                base = scores.get(row.get("teacher"))
                cells = [
                    {"score": row["scores"][place], "rdt": _rdt(row["scores"][place], base and base[place])}
                    for place in kept
                ]
                if any(cell["score"] is not None for cell in cells):
                    rows.append({"model": row["model"], "teacher": row.get("teacher"), "cells": cells})
            if rows:
                groups.append({"name": group["name"], "rows": rows})
        if groups:
            columns = [table["columns"][place]["name"] for place in kept]
            tables.append({**table, "columns": columns, "groups": groups})
    return tables


def _rdt(score: float | None, teacher: float | None) -> float | None:
    return None if score is None or teacher is None else 100 * (score - teacher) / teacher


def shade(rdt: float | None, within_percent: float = 5.0) -> str:
    """A cell's class by its RDT: better than the teacher, at most `within_percent` below it, or worse."""
    if rdt is None:
        return ""
    return "better" if rdt >= 0 else "near" if rdt >= -within_percent else "worse"
