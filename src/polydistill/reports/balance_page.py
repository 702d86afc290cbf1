"""The page of a balance run: teachers and students by group and language, data sizes, curves, probes."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from markupsafe import Markup

from polydistill.config.yaml_text import read_resolved
from polydistill.disk import Json, read_json
from polydistill.reports.figures import curves, grouped_bars, logged
from polydistill.reports.probe_page import METRICS, TASKS, gather_probes

TEACHER = "teacher"
# The metric of each task in the paper's probes.
PUBLISHED_METRICS = {"pos": "accuracy", "ner": "macro_f1"}


def gather_balance(run: Path) -> Json:
    """The page's own values, read from the run's JSON files."""
    recipe = read_resolved(run / "recipe.yaml")
    evaluation = read_json(run / "evaluation" / "mlm.json")
    summary, students = evaluation["summary"], list(recipe["students"])
    logs = {name: read_json(run / "students" / name / "log.json") for name in students}
    held_out = {
        language: {row["model"]: row for row in rows if row["text"] == "held_out"}
        for language, rows in evaluation["languages"].items()
    }
    groups = list(summary["mrr"][TEACHER])
    place = run / "evaluation" / "probes.json"
    probes = read_json(place)["summary"] if place.is_file() else {}
    return {
        "students": students,
        "groups": groups,
        "summary": summary,
        "held_out": held_out,
        "results": evaluation["languages"],
        "logs": logs,
        "group_figure": Markup(_group_figure(summary, held_out, students)),
        "language_figures": [
            Markup(_language_figure({language: held_out[language] for language in four}, students))
            for four in _by_fours(list(held_out))
        ],
        "size_figures": [
            (language, Markup(figure))
            for language in held_out
            if (figure := size_figure(recipe, logs, held_out[language], language))
        ],
        "loss_figure": Markup(
            curves(
                {name: points for name in students if (points := logged(logs[name]["log"], "mlm_loss"))},
                xlabel="step",
                ylabel="MLM loss, nats",
            )
        ),
        "probes": gather_probes(run)["tasks"] if probes else [],
        "published": published_beside(recipe, summary, probes),
    }


def published_beside(recipe: Json, summary: Json, probes: Json) -> Json | None:
    """This run's figures beside the paper's tables 2 and 3, in hundredths.

    probes  task → metric → model → group → kind → mean, the `summary` of probes.json
    None if the run has other languages, or none of the paper's students.
    """
    text = (resources.files("polydistill.reports") / "published_balance.json").read_text("utf-8")
    for table in json.loads(text):
        same = all(
            set(recipe["groups"].get(name, [])) == set(members) for name, members in table["groups"].items()
        )
        models = [name for name in table["models"] if name in recipe["students"]]
        if same and models and len(recipe["languages"]) == sum(map(len, table["groups"].values())):
            return {
                "paper": table["paper"],
                "table": table["table"],
                "groups": [*table["groups"], "all"],
                "models": models,
                "rows": _beside(table, models, summary, probes),
            }
    return None


def _beside(table: Json, models: list[str], summary: Json, probes: Json) -> list[Json]:
    """A row for each measure and group, with (this run's, the paper's) figure of each model."""
    rows = []
    for group in (*table["groups"], "all"):
        rows.append(
            {
                "name": "D",
                "group": group,
                "cells": [
                    (100 * summary["D"][name][group]["value"], table["models"][name]["D"][group])
                    for name in models
                ],
            }
        )
    for task, metric in PUBLISHED_METRICS.items():
        models_of = probes.get(task, {}).get(metric, {})
        for index, kind in enumerate(("in_language", "zero_shot")):
            for group in (*table["groups"], "all"):
                if not all(models_of.get(name, {}).get(group, {}).get(kind) for name in models):
                    # This run did not probe all of the paper's languages.
                    continue
                rows.append(
                    {
                        "name": f"{TASKS[task]}, {METRICS[metric][0]}, {kind.replace('_', ' ')}",
                        "group": group,
                        "cells": [
                            (
                                100 * models_of[name][group][kind]["mean"],
                                table["models"][name][task][group][index],
                            )
                            for name in models
                        ],
                    }
                )
    return rows


def _by_fours(names: list[str]) -> list[list[str]]:
    """Names in groups of four: a figure of more languages is too wide for the page."""
    return [names[start : start + 4] for start in range(0, len(names), 4)]


def _group_figure(summary: Json, held_out: dict[str, Json], students: list[str]) -> str:
    """The paper's figure 1: MRR of each model in each group of languages."""
    groups = list(summary["mrr"][TEACHER])
    return grouped_bars(
        groups,
        {name: [summary["mrr"][name][group] for group in groups] for name in (TEACHER, *students)},
        ylabel="MRR",
    )


def _language_figure(held_out: dict[str, Json], students: list[str]) -> str:
    """MRR of each language: baseline, teacher, students."""
    series: dict[str, list[float | None]] = {
        "unigram": [models[TEACHER]["unigram_mrr"] for models in held_out.values()]
    }
    for name in (TEACHER, *students):
        series[name] = [models[name]["mrr"] for models in held_out.values()]
    return grouped_bars(list(held_out), series, ylabel="MRR")


def size_figure(recipe: Json, logs: Json, models: Json, language: str) -> str | None:
    """The paper's figure 3: MRR against the characters that students saw, a line for each kind of labels.

    None unless students of some kind saw at least three sizes of text.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for name, settings in recipe["students"].items():
        size = logs[name]["characters"][language] / 1e6
        stored = settings["labels"] != "gold" and settings["predictions"] == "stored"
        kind = f"{settings['labels']} labels{', stored' if stored else ''}"
        points.setdefault(kind, []).append((size, models[name]["mrr"]))
    lines = {kind: sorted(pairs) for kind, pairs in points.items() if len({x for x, _ in pairs}) > 2}
    if not lines:
        return None
    series = {kind: ([x for x, _ in pairs], [y for _, y in pairs]) for kind, pairs in lines.items()}
    widest = [
        min(x for xs, _ in series.values() for x in xs),
        max(x for xs, _ in series.values() for x in xs),
    ]
    series[TEACHER] = (widest, [models[TEACHER]["mrr"]] * 2)
    return curves(series, xlabel="million characters", ylabel="MRR")
