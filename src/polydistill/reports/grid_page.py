"""The page of a grid: every measure of every run side by side, and their losses."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from polydistill.disk import Json, read_json
from polydistill.reports.figures import curves


def gather_grid(run: Path) -> Json:
    """The page's own values, read from the grid's JSON file."""
    table = read_json(run / "evaluation" / "grid.json")
    places: dict[tuple[str, str, str, str], Json] = {}
    for row in table["rows"]:
        read_by = row["teacher"] or row["tokenizer"] or ""
        place, model, column = row["place"], row["model"], row["run"]
        # A later run calls another run's student by that run's name: its figures go in that run's column.
        if row["tokenizer"] is None and row["model"] in table["runs"]:
            place, model, column = f"{row['run']}: {place}", "student", row["model"]
        places.setdefault((place, row["measure"], model, read_by), {})[column] = row
    shown = [name for name in table["runs"] if any(name in cells for cells in places.values())]
    losses = {name: (curve["steps"], curve["losses"]) for name, curve in table.get("losses", {}).items()}
    return {
        "runs": table["runs"],
        "columns": shown,
        "pages": {name for name in table["runs"] if (run / name / "report" / "index.html").is_file()},
        "places": [
            {
                "place": place,
                "measure": measure,
                "model": model,
                "read_by": read_by,
                "cells": cells,
                "best": max(values)
                if len(values := {cell["value"] for cell in cells.values()}) > 1
                else None,
            }
            for (place, measure, model, read_by), cells in places.items()
        ],
        "sooner": _by_run(table.get("sooner", [])),
        "loss_figure": Markup(curves(losses, xlabel="step", ylabel="MLM loss, nats")) if losses else None,
    }


def _by_run(rows: list[Json]) -> dict[str, dict[str, Json]]:
    """Run → other run → where it reaches the other's final loss; {} if no two runs can be compared."""
    cells: dict[str, dict[str, Json]] = {}
    for row in rows:
        cells.setdefault(row["run"], {})[row["other"]] = row
    return cells
