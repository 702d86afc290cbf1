"""What the students of compared runs cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from polydistill.disk import Json
from polydistill.pipelines.stages.compute import run_compute
from polydistill.reports.compute_table import compute_table


def compare_compute(folders: Sequence[Path], names: Sequence[str], console: Console) -> dict[str, Json]:
    """Print what each run's students cost, and return it: run, or `run: student` of several → its row.

    Counts what each run made in its own folder: scoring and teachers of other runs are not counted.
    """
    rows = {
        name if student == "student" else f"{name}: {student}": row
        for name, folder in zip(names, folders, strict=True)
        for student, row in run_compute(folder).items()
    }
    if rows:
        console.print(compute_table(rows))
    return rows
