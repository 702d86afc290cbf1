"""The cost of serving models side by side, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from polydistill.disk import Json, write_json
from polydistill.evaluation.cost import SHAPES, compare_cost
from polydistill.reports.progress import counting
from polydistill.reports.tables import cost_tables


def print_cost(
    models: Sequence[str], console: Console, *, rounds: int = 3, calls: int = 5, output: Path | None = None
) -> list[Json]:
    """Measure models (the first is the baseline), print the tables and return the rows.

    output  a JSON file for the rows
    """
    with counting(console) as count:
        rows = compare_cost(
            models,
            shapes=SHAPES,
            rounds=rounds,
            calls=calls,
            say=lambda line: console.print(line, markup=False),
            count=count,
        )
    console.print(cost_tables(rows))
    console.print(
        f"medians of {rounds} fresh processes, in turns, {calls} passes each; memory beyond that of a "
        "process without the model; float32 on a processor",
        markup=False,
    )
    if output is not None:
        write_json(output, rows)
    return rows
