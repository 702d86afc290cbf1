"""The page of a grid: every measure of every run side by side, and their losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from markupsafe import Markup

from polydistill.disk import Json, read_json
from polydistill.reports.figures import curves

# The measure of hidden words, and the measures of which less is better.
NATS = "nats/char"
LESS_IS_BETTER = frozenset({NATS})


def column_of(row: Json, variants: Collection[str]) -> tuple[tuple[str, str, str, str], str]:
    """((place, measure, model, what it is read by), column) of a row of a grid's table.

    variants  the names of the grid's runs, without seeds
    A later run calls another run's student by that run's name: its figures go in that run's column.
    """
    column: str = row["variant"] if "variant" in row else row["run"]
    if row["tokenizer"] is None and row["model"] in variants:
        return (f"{column}: {row['place']}", row["measure"], "student", ""), str(row["model"])
    # A pre-training's tokenizer has the run's own name.
    own = row["teacher"] == row["run"] is not None
    read_by = "own" if own else row["teacher"] or row["tokenizer"] or ""
    return (row["place"], row["measure"], row["model"], read_by), column


def gather_grid(run: Path) -> Json:
    """The page's own values, read from the grid's JSON file."""
    table = read_json(run / "evaluation" / "grid.json")
    variants = table.get("variants", table["runs"])
    places: dict[tuple[str, str, str, str], dict[str, list[Json]]] = {}
    for row in table["rows"]:
        key, column = column_of(row, variants)
        places.setdefault(key, {}).setdefault(column, []).append(row)
    summary = table.get("summary", {})
    known = {
        (entry["place"], entry["measure"], entry["model"], entry["read_by"]): entry
        for entry in summary.get("rows", [])
    }
    return {
        "runs": table["runs"],
        "seeds": table.get("seeds", []),
        "summary": summary,
        "compute": table.get("compute", {}),
        "columns": [name for name in variants if any(name in cells for cells in places.values())],
        "pages": {name for name in table["runs"] if (run / name / "report" / "index.html").is_file()},
        "places": [
            {
                **dict(zip(("place", "measure", "model", "read_by"), key, strict=True)),
                "cells": _cells(columns, known.get(key, {})),
                "best": _best(columns, key[1], known.get(key)),
            }
            for key, columns in places.items()
        ],
        "sooner": _by_run(table.get("sooner", []), table),
        "loss_figure": _losses(table),
    }


def _cells(columns: Mapping[str, list[Json]], entry: Json) -> dict[str, Json]:
    """Column → its mean over seeds, with interval and difference where the summary has them."""
    return {
        name: {
            "value": _mean(rows),
            "error": rows[0]["error"] if len(rows) == 1 else None,
            "level": entry.get("cells", {}).get(name),
            "difference": entry.get("differences", {}).get(name),
        }
        for name, rows in columns.items()
    }


def _mean(rows: list[Json]) -> float:
    return float(sum(row["value"] for row in rows) / len(rows))


def _best(columns: Mapping[str, list[Json]], measure: str, entry: Json | None) -> float | None:
    """The best mean of a row; None if its cells are not of the same things, or there is one.

    entry  the row's summary, whose differences are of cells that can be compared; None: there is no summary
    """
    if entry is not None and len(entry["differences"]) < len(columns) - 1:
        return None
    values = {_mean(rows) for rows in columns.values()}
    best = min if measure in LESS_IS_BETTER else max
    return best(values) if len(values) > 1 else None


def _losses(table: Json) -> Markup | None:
    """The loss curves, means over seeds where these were logged at the same steps."""
    curves_of: dict[str, list[Json]] = {}
    for name, curve in table.get("losses", {}).items():
        curves_of.setdefault(variant_of(name, table), []).append(curve)
    shown = {
        name: (each[0]["steps"], [sum(losses) / len(losses) for losses in zip(*_rows(each), strict=True)])
        for name, each in curves_of.items()
    }
    return Markup(curves(shown, xlabel="step", ylabel="MLM loss, nats")) if shown else None


def _rows(each: list[Json]) -> list[list[float]]:
    same = [curve["losses"] for curve in each if curve["steps"] == each[0]["steps"]]
    return same or [each[0]["losses"]]


def variant_of(run: str, table: Json) -> str:
    """A run's name without its seed."""
    for seed in table.get("seeds", []):
        if run.endswith(f"-seed{seed}") and (name := run.removesuffix(f"-seed{seed}")) in table["variants"]:
            return name
    return run


def _by_run(rows: list[Json], table: Json) -> dict[str, dict[str, Json]]:
    """Run → other run → where it reaches the other's final loss; {} if no two runs can be compared.

    With several seeds, means over those that reach it, of which `seeds` are `reached`.
    """
    each: dict[str, dict[str, list[Json]]] = {}
    for row in rows:
        name, other = variant_of(row["run"], table), variant_of(row["other"], table)
        each.setdefault(name, {}).setdefault(other, []).append(row)
    return {
        name: {other: _reached(cells) for other, cells in others.items()} for name, others in each.items()
    }


def _reached(cells: list[Json]) -> Json:
    there = [cell for cell in cells if cell["step"] is not None]
    return {
        "seeds": len(cells),
        "reached": len(there),
        **{
            key: sum(cell[key] for cell in there) / len(there) if there else None
            for key in ("step", "factor")
        },
    }
