"""A grid's evaluation as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from polydistill.disk import Json
from polydistill.reports.compute_table import compute_table
from polydistill.reports.finetune_tables import finetune_tables
from polydistill.reports.records import check_evaluation


def grid_tables(folder: Path) -> list[Table]:
    """MRR of each text (a line for each run, a column for each language), then probes, then fine-tuning."""
    grid = check_evaluation(folder / "evaluation" / "grid.json")
    tuned = [name for name in grid["runs"] if (folder / name / "evaluation" / "finetune.json").is_file()]
    rows = over_seeds([row for row in grid["rows"] if row["run"] not in tuned])
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
    # With seeds, a fine-tuning's figures are in the table of differences, and in each seed's own report.
    of_tuned = (
        [] if grid.get("seeds") else [table for name in tuned for table in finetune_tables(folder / name)]
    )
    compute = [compute_table(grid["compute"])] if grid.get("compute") else []
    return [*tables, *of_tuned, *difference_tables(grid), *compute]


def over_seeds(rows: Sequence[Json]) -> list[Json]:
    """Rows with the mean over seeds in place of each seed's; the run is then the variant."""
    together: dict[tuple[object, ...], list[Json]] = {}
    for row in rows:
        if row.get("seed") is None:
            together[id(row),] = [row]
            continue
        own = row["teacher"] == row["run"]
        key = (row["variant"], row["place"], row["measure"], row["model"], row["tokenizer"])
        together.setdefault((*key, None if own else row["teacher"]), []).append(row)
    means = []
    for each in together.values():
        first = each[0]
        run = first.get("variant", first["run"])
        teacher = run if first.get("teacher") == first["run"] else first.get("teacher")
        value = sum(row["value"] for row in each) / len(each)
        means.append(first | {"run": run, "teacher": teacher, "value": value})
    return means


def difference_tables(grid: Json) -> list[Table]:
    """A table for each measure: every run's mean and its difference from the baseline's, with a verdict."""
    summary = grid.get("summary", {})
    entries = [entry for entry in summary.get("rows", []) if entry["differences"]]
    tables = []
    for measure in dict.fromkeys(entry["measure"] for entry in entries):
        table = Table(box=box.SIMPLE, title=escape(f"{measure}: differences from {summary['baseline']}"))
        table.add_column("", overflow="fold")
        for heading in ("mean", "difference", "from", "to"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("verdict")
        for entry in (entry for entry in entries if entry["measure"] == measure):
            read_by = f", read by {entry['read_by']}" if entry["read_by"] else ""
            base = entry["cells"][summary["baseline"]]["value"]
            place = escape(f"{entry['place']}: {entry['model']}{read_by}")
            table.add_row(f"[bold]{place}[/bold]", f"{base:.3f}")
            for name, cell in entry["differences"].items():
                bounds = (
                    ("", "")
                    if cell["knows"] == "nothing"
                    else (f"{cell['low']:+.3f}", f"{cell['high']:+.3f}")
                )
                star = "*" if cell["settled"] else " "
                mean = f"{entry['cells'][name]['value']:.3f}"
                table.add_row(
                    f"  {escape(name)}", mean, f"{cell['value']:+.3f}{star}", *bounds, cell["verdict"]
                )
        tables.append(table)
    if tables:
        tables[-1].caption = _caption(grid)
        tables[-1].caption_justify = "left"
    return tables


def _caption(grid: Json) -> str:
    summary = grid["summary"]
    several = len(grid["seeds"]) > 1
    knows = "seeds and items (of probes: seeds)" if several else "items, not variation between seeds"
    margin = summary["margin"]
    level = (
        "" if margin is None else f"; level: the interval is within {margin:g} % of {summary['baseline']}'s"
    )
    return (
        f"Intervals of {100 * summary['level']:g} % reflect {knows}. * after Holm's correction for all "
        f"differences of the measure{level}."
    )


def _mrr_table(title: str, rows: list[Json]) -> Table:
    table = Table(box=box.SIMPLE, title=title, padding=(0, 1, 0, 0))
    languages = list(dict.fromkeys(row["language"] for row in rows))
    lines = grid_lines(rows)
    if any(", " in line for line in lines):
        table.caption = (
            "Where no tokenizer is named, the language's teacher's reads it; other tokenizers guess other "
            "tokens."
        )
        table.caption_justify = "left"
    table.add_column("", overflow="fold")
    for language in languages:
        table.add_column(escape(language), justify="right")
    # Teachers last: they are the same in all runs that have them.
    for line, cells in sorted(lines.items(), key=lambda pair: pair[0].startswith("teacher")):
        table.add_row(
            escape(line), *(f"{cells[language]:.3f}" if language in cells else "" for language in languages)
        )
    return table


def grid_lines(rows: Iterable[Json]) -> dict[str, dict[str, float]]:
    """Line → language → MRR. A line has its run's name, made longer only where lines would clash."""
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
        for line in further:
            if lines.setdefault(line, {}).setdefault(row["language"], row["value"]) == row["value"]:
                break
    return lines


def _probe_table(title: str, rows: list[Json]) -> Table:
    table = Table(box=box.SIMPLE, title=title, padding=(0, 1, 0, 0))
    runs = list(dict.fromkeys(row["run"] for row in rows))
    table.add_column("", overflow="fold")
    for run in runs:
        table.add_column(escape(run), justify="right", overflow="fold")
    places: dict[str, dict[str, float]] = {}
    for row in rows:
        place = f"{row['place']}: {row['measure']} of {row['model']}"
        places.setdefault(place, {})[row["run"]] = row["value"]
    for place, cells in places.items():
        table.add_row(escape(place), *(f"{cells[run]:.3f}" if run in cells else "" for run in runs))
    return table
