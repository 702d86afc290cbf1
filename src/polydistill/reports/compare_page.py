"""A page that compares runs: results with intervals, losses, and the settings that differ."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from polydistill.config.yaml_text import read_resolved
from polydistill.disk import Json, read_record, write_text
from polydistill.reports.figures import curves, grouped_bars, logged
from polydistill.reports.page import environment
from polydistill.version import __version__

# Settings that name a run or its place.
NAMES = ("name", "output", "reuse", "data")


def write_comparison(
    path: Path,
    folders: Sequence[Path],
    names: Sequence[str],
    rows: Sequence[Json],
    text: str,
    compute: Mapping[str, Json] | None = None,
) -> Path:
    """Write an HTML page that compares runs; returns its path.

    rows     of `compare_merges`; empty for runs of other kinds, whose table is in `text`
    text     what the command printed
    compute  what each student cost, see `pipelines.stages.compute.run_compute`
    """
    values = {
        "name": " · ".join(names),
        "names": list(names),
        "pages": {name: _page(path, folder) for name, folder in zip(names, folders, strict=True)},
        "rows": [_shown(row, names) for row in rows],
        "text": text,
        "compute": compute or {},
        "figure": Markup(_bars(rows, names)) if rows else None,
        "loss_figure": _losses(folders, names),
        "changes": changes([read_resolved(folder / "recipe.yaml") for folder in folders]),
        "version": __version__,
    }
    write_text(path, environment().get_template("compare.html.jinja").render(**values))
    return path


def changes(recipes: Sequence[object]) -> dict[str, list[str]]:
    """Setting → its value in each recipe, for settings that are not equal in all."""
    flat = [_flat(recipe) for recipe in recipes]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    return {
        key: values
        for key in keys
        if key not in NAMES and len(set(values := [each.get(key, "") for each in flat])) > 1
    }


def _flat(value: object, key: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        return {
            name: shown
            for part, inner in value.items()
            for name, shown in _flat(inner, f"{key}.{part}".lstrip(".")).items()
        }
    return {key: "" if value is None else str(value)}


def _page(path: Path, folder: Path) -> str | None:
    report = folder / "report" / "index.html"
    return os.path.relpath(report.resolve(), path.resolve().parent) if report.is_file() else None


def _shown(row: Json, names: Sequence[str]) -> Json:
    cells = []
    for name in ("teacher", *names):
        if name in row:
            difference = row.get(f"{name} - {names[0]}")
            settled = difference is not None and _starred(difference)
            cells.append({"name": name, "value": row[name], "difference": difference, "settled": settled})
    return {key: row[key] for key in ("language", "text", "tokenizer", "masked")} | {"cells": cells}


def _starred(difference: Json) -> bool:
    """Whether it differs from 0: after a correction for the whole table, where that was made."""
    alone = not difference["low"] <= 0 <= difference["high"]
    return bool(difference.get("starred", alone))


def _bars(rows: Sequence[Json], names: Sequence[str]) -> str:
    """The students' MRR on each language's held-out text."""
    first: dict[str, Json] = {}
    for row in rows:
        if row["text"] == "held_out":
            first.setdefault(row["language"], row)
    series = {name: [row[name] for row in first.values()] for name in names}
    return grouped_bars(list(first), series, ylabel="MRR")


def _losses(folders: Sequence[Path], names: Sequence[str]) -> Markup | None:
    series = {}
    for name, folder in zip(names, folders, strict=True):
        log = read_record(folder / "student" / "log.json").get("log", [])
        points = logged(log, "mlm_loss") or logged(log, "loss")
        if points is not None:
            series[name] = points
    return Markup(curves(series, xlabel="step", ylabel="MLM loss, nats")) if series else None
