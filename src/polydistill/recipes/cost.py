"""The cost of serving models side by side, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from polydistill.disk import write_json
from polydistill.evaluation.cost import SHAPES, compare_cost


def print_cost(
    models: Sequence[str], console: Console, *, rounds: int = 3, calls: int = 5, output: Path | None = None
) -> list[dict[str, Any]]:
    """Measure models (the first is what others are measured by), print the tables and return the rows.

    output  a JSON file for the rows
    """
    rows = compare_cost(models, shapes=SHAPES, rounds=rounds, calls=calls)
    console.print(cost_tables(rows))
    console.print(
        f"medians of {rounds} fresh processes, in turns, {calls} passes each; memory beyond what a process has before "
        "the model; float32 on a processor",
        markup=False,
    )
    if output is not None:
        write_json(output, rows)
    return rows


def cost_tables(rows: Sequence[dict[str, Any]]) -> Group:
    """Sizes, then times and memory; rows as `compare_cost` gives them, the first model's being what 1 / it goes by."""
    return Group(_sizes(rows), _times(rows))


def _sizes(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("", "model", "parameters", "without tables", "pieces", "file"):
        table.add_column(name, justify="left" if name in ("", "model") else "right", overflow="fold")
    for number, row in enumerate({row["model"]: row for row in rows}.values(), 1):
        table.add_row(
            str(number), escape(row["model"]), f"{row['parameters']:,}", f"{row['parameters'] - row['embedding_parameters']:,}",
            f"{row['pieces']:,}", f"{row['file_bytes'] / 2**20:,.1f} MiB",
        )  # fmt: skip
    return table


def _times(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("texts x tokens", "part", "model", "latency", "1 / it", "memory"):
        table.add_column(name, justify="right" if name in ("latency", "1 / it", "memory") else "left")
    # Paths are long, and the first table says which number is whose.
    numbers = {
        model: str(number) for number, model in enumerate(dict.fromkeys(row["model"] for row in rows), 1)
    }
    first: dict[tuple[int, str], float | None] = {}
    for row in rows:
        place = (row["batch"], row["part"])
        seconds = row["seconds"]
        base = first.setdefault(place, seconds)
        table.add_row(
            f"{row['batch']} x {row['length']}",
            "encoder" if row["part"] == "encoder" else "with MLM head",
            numbers[row["model"]],
            "no room" if seconds is None else f"{1000 * seconds:,.1f} ms",
            "" if seconds is None or base is None else f"{base / seconds:.2f}",
            "" if seconds is None else f"{row['peak_bytes'] / 2**20:,.0f} MiB",
        )
    return table
