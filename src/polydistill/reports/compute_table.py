"""What compared models cost: steps, seconds of this machine and floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.markup import escape
from rich.table import Table

from polydistill.disk import Json

TRAINED = ("training", "scoring", "teachers", "total")
FINE_TUNED = ("fine_tuning", "pretraining", "total")
NOTE = (
    "Seconds of the machine that ran it, and floating-point operations: matrix products, 6 N D for training "
    "and 2 N D for scoring, with attention's, the output layer at predicted positions alone. Empty: none "
    "was made here, so it is not counted; '?': its weights or tokens are not known."
)


def compute_table(compute: Mapping[str, Json], parts: tuple[str, ...] = TRAINED) -> Table:
    """A line for each model: its steps, and seconds and operations of each part."""
    table = Table(box=box.SIMPLE, title="compute", caption=NOTE, caption_justify="left", padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for heading in ("steps", *(part.replace("_", "-") for part in parts)):
        table.add_column(heading, justify="right")
    for name, row in compute.items():
        cells = [
            "" if row[part] is None else f"{seconds(row[part])} {operations(row[part])}" for part in parts
        ]
        table.add_row(escape(name), f"{row['steps']:,}", *cells)
    return table


def seconds(part: Json) -> str:
    """A part's seconds, or `?`."""
    return "?" if part["seconds"] is None else f"{part['seconds']:,.0f} s"


def operations(part: Json) -> str:
    """A part's operations, or `?`."""
    return "?" if part["flops"] is None else f"{part['flops']:.2e}"
