"""Balance runs with the same teachers side by side: D and probes of all their students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from polydistill.errors import RunFolderError
from polydistill.files import read_json
from polydistill.recipes.balance_evaluation import TEACHER, summarise


def is_balance(folder: Path) -> bool:
    """Whether a folder is a balance run's."""
    place = folder / "recipe.yaml"
    return place.is_file() and yaml.safe_load(place.read_text("utf-8")).get("recipe") == "balance"


def compare_balance(
    folders: Sequence[Path], names: Sequence[str], found: Sequence[Mapping[str, Any]], console: Console
) -> dict[str, Any]:
    """Print D of every student by group, with 95 % intervals, and what its probes scored.

    found  each run's ranks: the same masked tokens, read by the same teachers
    Returns `summarise`'s dictionary of all students. Raises RunFolderError for a run of other tokens or teachers.
    """
    recipe = yaml.safe_load((folders[0] / "recipe.yaml").read_text("utf-8"))
    languages = list(recipe["languages"])
    ranks, places = _joined(folders, names, found, languages)
    summary = summarise(ranks, languages, list(places), recipe["groups"])
    groups = list(summary["mrr"][TEACHER])
    table = _table("D, MRR minus the teacher's, in hundredths", groups)
    for student, of_group in summary["D"].items():
        cells = [_interval(of_group[group]) for group in groups]
        table.add_row(student, *cells)
    console.print(table)
    for task, metric, rows in _probes(places):
        table = _table(f"{task}, {metric}: in language / zero-shot, in hundredths", groups)
        for student, of_group in rows.items():
            table.add_row(student, *(_both(of_group.get(group, {})) for group in groups))
        console.print(table)
    console.print(
        "Means over the group's languages; D with its 95 % interval by a paired bootstrap over examples, which knows the "
        "chance of the texts, not of the training's seed.",
        markup=False,
    )
    return summary


def _joined(
    folders: Sequence[Path],
    names: Sequence[str],
    found: Sequence[Mapping[str, Any]],
    languages: Sequence[str],
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, tuple[Path, str]]]:
    """(ranks of all runs' students together, what they are called here → (run, their name there))."""
    ranks: dict[str, npt.NDArray[Any]] = {}
    places: dict[str, tuple[Path, str]] = {}
    for folder, run, own in zip(folders, names, found, strict=True):
        for language in languages:
            for name in ("counts", TEACHER):
                key = f"{language}/held_out/shared//{name}"
                if key not in own or not np.array_equal(ranks.setdefault(key, own[key]), own[key]):
                    raise RunFolderError(
                        "run", str(folder), f"has other teachers or masked tokens than {folders[0]} ({language})",
                        "compare runs of the same languages, text, teachers, masking and seed",
                    )  # fmt: skip
        # Those that were evaluated: a recipe may have more by now.
        for student in read_json(folder / "evaluation" / "mlm.json")["summary"]["D"]:
            name = student if student not in places else f"{run}: {student}"
            places[name] = folder, student
            for language in languages:
                place = f"{language}/held_out/shared//"
                ranks[place + name] = own[place + student]
    return ranks, places


def _probes(places: Mapping[str, tuple[Path, str]]) -> list[tuple[str, str, dict[str, Any]]]:
    """(task, metric, student → group → kind → mean and deviation) of what all the runs have probed."""
    summaries = {
        folder: read_json(place)["summary"]
        for folder in {folder for folder, _ in places.values()}
        if (place := folder / "evaluation" / "probes.json").is_file()
    }
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, (folder, student) in places.items():
        for task, metrics in summaries.get(folder, {}).items():
            for metric, models in metrics.items():
                if student in models:
                    rows.setdefault((task, metric), {})[name] = models[student]
    return [(task, metric, of_students) for (task, metric), of_students in rows.items()]


def _table(title: str, groups: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE, title=title, title_justify="left", title_style="bold")
    table.add_column("", overflow="fold")
    for group in groups:
        table.add_column(group, no_wrap=True, justify="right")
    return table


def _interval(found: Mapping[str, float]) -> str:
    return f"{100 * found['value']:+.1f} ± {50 * (found['high'] - found['low']):.1f}"


def _both(kinds: Mapping[str, Any]) -> str:
    return " / ".join(
        f"{100 * kinds[kind]['mean']:.1f}" if kinds.get(kind) else "-"
        for kind in ("in_language", "zero_shot")
    )
