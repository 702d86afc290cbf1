"""Balance runs with the same teachers side by side: D, differences and probes of all their students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polydistill.errors import RunFolderError
from polydistill.evaluation.summaries import TEACHER, HeldOut, summarise
from polydistill.evaluation.verdicts import starred
from polydistill.tasks.probes import METRICS
from polydistill.tasks.probes import summarise as summarise_probes

# Source → target → metric → one score per seed.
Scores = dict[str, dict[str, dict[str, list[float]]]]
Arrays = dict[str, npt.NDArray[Any]]


class Evaluated(NamedTuple):
    """The measurements of a balance run.

    name    its name in tables
    groups  its groups of languages
    ranks   `language/held_out/shared//model` → [M] ranks, and `…/counts` → [E] masked tokens of each example
    scores  task → student → scores of its probes
    """

    name: str
    folder: str
    languages: list[str]
    students: list[str]
    groups: dict[str, list[str]]
    ranks: Arrays
    scores: Mapping[str, Mapping[str, Scores]]


def compare_balance(runs: Sequence[Evaluated], console: Console) -> None:
    """Print every student's D by group, the first one's difference from each, and what their probes scored.

    Raises RunFolderError for a run of other languages, masked tokens or teachers than the first one's.
    """
    students = {
        f"{run.name}: {student}" if len(runs) > 1 else student: (run, student)
        for run in runs
        for student in run.students
    }
    teachers = _joined(runs)
    models = {TEACHER: (teachers, TEACHER)} | {
        name: (run.ranks, student) for name, (run, student) in students.items()
    }
    languages = {
        language: HeldOut(
            {
                name: 1.0 / ranks[f"{language}/held_out/shared//{model}"].astype(np.float64)
                for name, (ranks, model) in models.items()
            },
            teachers[f"{language}/held_out/shared//counts"],
        )
        for language in runs[0].languages
    }
    summary = summarise(languages, runs[0].groups)
    groups = list(summary["mrr"][TEACHER])
    _print(
        console,
        "D, MRR minus the teacher's, in hundredths",
        groups,
        {student: [_plus_minus(cells[group]) for group in groups] for student, cells in summary["D"].items()},
    )
    differences = summary["differences"]
    stars = iter(starred([cells[group] for cells in differences.values() for group in groups]))
    _print(
        console,
        f"MRR of {summary['first']} minus that of the others, in hundredths",
        groups,
        {
            student: [_plus_minus(cells[group], star=next(stars)) for group in groups]
            for student, cells in differences.items()
        },
    )
    _print_probes(runs, students, groups, console)
    console.print(
        "Means over the group's languages; ± is half of a 95 % interval by a paired bootstrap over examples, "
        "* where it differs from zero after Holm's correction for all that are shown. The interval reflects "
        "sampling of the text, not variation between seeds.",
        markup=False,
    )


def _joined(runs: Sequence[Evaluated]) -> Arrays:
    """The teachers' ranks and the examples' masked tokens, which must be equal in all runs."""
    first = runs[0]
    joined: Arrays = {}
    for run in runs:
        if set(run.languages) != set(first.languages):
            raise RunFolderError(
                "run",
                run.folder,
                f"was evaluated on {', '.join(run.languages)}, and {first.folder} on "
                f"{', '.join(first.languages)}",
                "compare runs of the same languages",
            )
        for language in first.languages:
            for name in ("counts", TEACHER):
                key = f"{language}/held_out/shared//{name}"
                if not np.array_equal(joined.setdefault(key, run.ranks[key]), run.ranks[key]):
                    raise RunFolderError(
                        "run",
                        run.folder,
                        f"has other teachers or masked tokens than {first.folder} ({language})",
                        "compare runs of the same text, teachers, masking and seed",
                    )
    return joined


def _print_probes(
    runs: Sequence[Evaluated],
    students: Mapping[str, tuple[Evaluated, str]],
    groups: Sequence[str],
    console: Console,
) -> None:
    """Print a table for each task and metric, of runs that probed the languages of that task's first run."""
    for task in dict.fromkeys(task for run in runs for task in run.scores):
        scores_of = {
            name: run.scores[task][student] for name, (run, student) in students.items() if task in run.scores
        }
        first = next(iter(scores_of.values()))
        alike = {name: scores for name, scores in scores_of.items() if scores.keys() == first.keys()}
        for metric in METRICS[task]:
            rows = {name: summarise_probes(scores, metric, runs[0].groups) for name, scores in alike.items()}
            _print(
                console,
                f"{task}, {metric.replace('_', ' ')}: in language / zero-shot, in hundredths",
                groups,
                {name: [_both(of_group[group]) for group in groups] for name, of_group in rows.items()},
            )
        if left_out := [name for name in scores_of if name not in alike]:
            console.print(f"{task} of other languages, left out: {', '.join(left_out)}", markup=False)


def _print(console: Console, title: str, groups: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    if not rows:
        return
    table = Table(box=box.SIMPLE, title=escape(title), title_justify="left", title_style="bold")
    table.add_column("", overflow="fold")
    for group in groups:
        table.add_column(group, no_wrap=True, justify="right")
    for name, cells in rows.items():
        table.add_row(escape(name), *cells)
    console.print(table)


def _plus_minus(cell: Mapping[str, float], *, star: bool = False) -> str:
    return f"{100 * cell['value']:+.1f}{'*' if star else ''} ± {50 * (cell['high'] - cell['low']):.1f}"


def _both(kinds: Mapping[str, Mapping[str, float]]) -> str:
    return " / ".join(
        f"{100 * kinds[kind]['mean']:.1f}" if kinds[kind] else "-" for kind in ("in_language", "zero_shot")
    )
