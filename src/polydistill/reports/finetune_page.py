"""The page of a fine-tuning run: each task's scores coloured by RDT, beside published ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from polydistill.config.groups import ALL
from polydistill.config.yaml_text import read_resolved
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
# The kind of a published column that averages a table's tasks.
AVERAGE = "average"
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
    tasks = [
        _task(results, task, metric) for task, metrics in results["summary"].items() for metric in metrics
    ]
    kinds = {about["kind"] for about in results["tasks"].values()}
    return {
        "results": results,
        "tasks": tasks,
        "groups": group_tables(results),
        "averages": results["rdt_average"],
        "verdicts": VERDICTS,
        "published": published_tables(kinds),
        "shade": shade,
        "margin": _margin(run),
    }


def _margin(run: Path) -> float | None:
    """The margin of equivalence that the recipe states, in percent."""
    margin: float | None = read_resolved(run / "recipe.yaml").get("equivalence_margin")
    return margin


def _task(results: Json, task: str, metric: str) -> Json:
    """A task's table of one metric."""
    about, models = results["tasks"][task], results["summary"][task][metric]
    languages = list(dict.fromkeys(language for cells in models.values() for language in cells))
    rdt = results["rdt"][task][metric]
    # {} unless a language has several teachers; results of earlier versions have none.
    by_teacher = results.get("rdt_by_teacher", {}).get(task, {}).get(metric) or {"": rdt}
    # A language has the same teachers for all models.
    teachers = {
        language: list(
            dict.fromkeys(
                of_model[language]["teacher"]
                for of_models in by_teacher.values()
                for of_model in of_models.values()
                if language in of_model
            )
        )
        for language in languages
    }
    return {
        "name": f"{task}: {METRICS[metric][0]}",
        "meaning": f"{KINDS[about['kind']]}, {about['setting'].replace('_', ' ')}. {METRICS[metric][1]}",
        "languages": languages,
        "teachers": teachers,
        "averaged": [name for name, models in by_teacher.items() if models],
        "rows": {
            model: {
                "cells": [
                    {
                        "score": cells.get(language),
                        "rdt": [
                            cell
                            for of_models in by_teacher.values()
                            if (cell := of_models.get(model, {}).get(language))
                        ],
                    }
                    for language in languages
                ],
                "all": {
                    name: cell
                    for name, of_models in by_teacher.items()
                    if (cell := of_models.get(model, {}).get("all"))
                },
            }
            for model, cells in joined(models, results.get("teachers", {})).items()
        },
    }


def group_tables(results: Json) -> list[Json]:
    """A table for each group of languages: averages in each task and over tasks, with RDT from each teacher.

    Tasks show their first metric, questions their exact matches too, as in MergeDistill's table 4. [] for
    results of earlier versions.
    """
    tables = []
    for group, averages in results.get("groups", {}).items():
        columns = []
        for task, of_task in averages["tasks"].items():
            first, *others = of_task["metrics"]
            for metric in (first, *(other for other in others if other == "exact")):
                name = f"{task}, {METRICS[metric][0]}"
                columns.append({"name": name, "of": of_task["languages"], **of_task["metrics"][metric]})
        # The average over tasks takes each task's first metric.
        columns.append({"name": "average over tasks", "of": [], **averages["average"]})
        # One language and task: the task's own table says it all.
        if len(columns) > 2 or len(columns[0]["of"]) > 1 or group != ALL:
            models = dict.fromkeys(model for column in columns for model in column["scores"])
            rows = {model: [_average(column, model) for column in columns] for model in models}
            heads = [{"name": column["name"], "of": column["of"]} for column in columns]
            tables.append({"name": group, "languages": averages["languages"], "columns": heads, "rows": rows})
    return [table for table in tables if table["rows"]]


def _average(column: Json, model: str) -> Json:
    """A model's cell; `first` is the RDT that colours it, from the first teacher."""
    rdt = {teacher: models[model] for teacher, models in column["rdt"].items() if model in models}
    colour = [cell["value"] for cell in rdt.values()]
    return {"score": column["scores"].get(model), "rdt": rdt, "first": colour[0] if colour else None}


def joined(models: Mapping[str, Json], teachers: Mapping[str, str | list[str]]) -> dict[str, Json]:
    """Model → language → cell. Monolingual teachers share a row, as in papers.

    teachers  language → its teachers; results of earlier versions name one
    """
    own = {
        model: cells
        for model, cells in models.items()
        if len(cells) == 1 and all(teachers.get(language) in (model, [model]) for language in cells)
    }
    if len(own) < 2:
        return dict(models)
    rest = {model: cells for model, cells in models.items() if model not in own}
    return {
        **rest,
        OWN_TEACHERS: {language: cell for cells in own.values() for language, cell in cells.items()},
    }


def published_tables(kinds: set[str]) -> list[Json]:
    """Published tables, cut to these kinds of tasks, with RDT of scores whose teachers' are known.

    A paper's own average over its tasks stays beside them.
    """
    text = (resources.files("polydistill.reports") / "published.json").read_text("utf-8")
    tables = []
    for table in json.loads(text):
        kept = [
            place
            for place, column in enumerate(table["columns"])
            if column["kind"] in kinds or column["kind"] == AVERAGE
        ]
        # Of a table without these kinds only its average would be left.
        if all(table["columns"][place]["kind"] == AVERAGE for place in kept):
            continue
        groups = []
        for group in table["groups"]:
            scores = {row["model"]: row["scores"] for row in group["rows"]}
            rows = []
            for row in group["rows"]:
                teachers = row.get("teachers", [])
                cells = [
                    {
                        "score": row["scores"][place],
                        "rdt": [_rdt(row["scores"][place], scores[name][place]) for name in teachers],
                    }
                    for place in kept
                ]
                if any(cell["score"] is not None for cell in cells):
                    rows.append({"model": row["model"], "teachers": teachers, "cells": cells})
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
