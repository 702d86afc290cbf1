"""A fine-tuning's evaluation as tables for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from polydistill.disk import Json
from polydistill.reports.compute_table import FINE_TUNED, compute_table
from polydistill.reports.finetune_page import group_tables, joined
from polydistill.reports.records import check_evaluation


def finetune_tables(folder: Path) -> list[Table]:
    """A table of each task's first metric, with RDT. The report has the other metrics."""
    results = check_evaluation(folder / "evaluation" / "finetune.json")
    tables = []
    for task, metrics in results.get("summary", {}).items():
        kind, metric = results["tasks"][task], next(iter(metrics))
        languages = list(dict.fromkeys(name for scores in metrics[metric].values() for name in scores))
        table = Table(
            title=f"{task} ({kind['setting'].replace('_', ' ')}): {metric.replace('_', ' ')}, x 100",
            box=box.SIMPLE,
        )
        table.add_column("", overflow="fold")
        for heading in (*languages, "RDT, %", "from", "to"):
            table.add_column(heading, justify="right", no_wrap=True)
        for model, scores in joined(metrics[metric], results.get("teachers", {})).items():
            cells = [
                f"{100 * scores[language]['mean']:.1f}" if language in scores else ""
                for language in languages
            ]
            whole = results["rdt"][task][metric].get(model, {}).get("all") or {}
            bounds = [f"{whole[key]:+.1f}" if key in whole else "" for key in ("value", "low", "high")]
            table.add_row(escape(model), *cells, *bounds)
        tables.append(table)
    tables += [_group_table(group) for group in group_tables(results)]
    if tables:
        tables[-1].caption = (
            "RDT: mean over languages of 100 (student - teacher) / teacher, positive where the student is "
            "better, with its interval over test items and seeds; under averages, RDT of the two averages. "
            "Other metrics, deviations over seeds and each of several teachers' RDTs are in the report."
        )
        tables[-1].caption_justify = "left"
    if results.get("compute"):
        tables.append(compute_table(results["compute"], FINE_TUNED))
    return tables


def _group_table(group: Json) -> Table:
    """A group's averages, a line for each model, and lines of RDT from each teacher."""
    languages = ", ".join(group["languages"])
    table = Table(title=escape(f"averages over {group['name']} ({languages}), x 100"), box=box.SIMPLE)
    table.add_column("", overflow="fold")
    for column in group["columns"]:
        table.add_column(escape(column["name"]), justify="right", overflow="fold")
    for model, cells in group["rows"].items():
        scores = [f"{100 * cell['score']['mean']:.1f}" if cell["score"] else "" for cell in cells]
        table.add_row(escape(model), *scores)
        for teacher in dict.fromkeys(name for cell in cells for name in cell["rdt"]):
            values = [cell["rdt"].get(teacher, {}).get("value") for cell in cells]
            table.add_row(
                escape(f"  RDT from {teacher}, %"),
                *("" if value is None else f"{value:+.1f}" for value in values),
            )
    return table
