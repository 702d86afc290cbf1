"""A grid's rows for people, eighty columns wide."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from polydistill.pipelines.records import check_evaluation
from polydistill.reports.tables import finetune_tables


def grid_tables(folder: Path) -> list[Table]:
    """For each text MRR with a line for each run and a column for each language; probes; what was fine-tuned."""
    found = check_evaluation(folder / "evaluation" / "grid.json")
    tuned = [name for name in found["runs"] if (folder / name / "evaluation" / "finetune.json").is_file()]
    rows = [row for row in found["rows"] if row["run"] not in tuned]
    ranked = [row for row in rows if "language" in row]
    probed = [row for row in rows if "language" not in row]
    tables = [
        _mrr_table(
            f"{escape(str(folder))}: MRR on {text.replace('_', ' ')} text",
            [row for row in ranked if row["text"] == text],
        )
        for text in dict.fromkeys(row["text"] for row in ranked)
    ]
    tables += [_probe_table(escape(str(folder)), probed)] if probed else []
    return tables + [one for name in tuned for one in finetune_tables(folder / name)]


def _mrr_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE, title=title, padding=(0, 1, 0, 0))
    languages = list(dict.fromkeys(row["language"] for row in rows))
    lines = _lines(rows)
    if any(", " in line for line in lines):
        table.caption = "Each language is read by its teacher's tokenizer where none is named; other tokenizers guess other tokens."
        table.caption_justify = "left"
    table.add_column("", overflow="fold")
    for language in languages:
        table.add_column(escape(language), justify="right")
    # Teachers last: they are the same in all runs that have them.
    for line, cells in sorted(lines.items(), key=lambda pair: pair[0].startswith("teacher")):
        table.add_row(escape(line), *(f"{cells[one]:.3f}" if one in cells else "" for one in languages))
    return table


def _lines(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Line → language → MRR. A line is named after its run, and further as far as it has to be."""
    lines: dict[str, dict[str, float]] = {}
    for row in rows:
        own = row["teacher"] is not None
        if row["model"] == "student":
            name = row["run"] if own else f"{row['run']}, {row['tokenizer']} tokenizer"
        else:
            name = "teacher" if row["model"] == row["teacher"] else f"{row['run']}: {row['model']}"
        further = [
            name,
            f"{name}, {row['teacher']}'s tokenizer",
            f"{row['run']}: {name}, {row['teacher']}'s tokenizer",
        ]
        for one in further:
            if lines.setdefault(one, {}).setdefault(row["language"], row["value"]) == row["value"]:
                break
    return lines


def _probe_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE, title=title, padding=(0, 1, 0, 0))
    runs = list(dict.fromkeys(row["run"] for row in rows))
    table.add_column("", overflow="fold")
    for run in runs:
        table.add_column(escape(run), justify="right", overflow="fold")
    places: dict[str, dict[str, float]] = {}
    for row in rows:
        places.setdefault(f"{row['place']}: {row['measure']} of {row['model']}", {})[row["run"]] = row[
            "value"
        ]
    for place, cells in places.items():
        table.add_row(escape(place), *(f"{cells[run]:.3f}" if run in cells else "" for run in runs))
    return table
