"""Finished merges side by side: MRR on the same masked tokens, and which differences the texts settle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polydistill.errors import RunFolderError
from polydistill.evaluation import Difference, mean_reciprocal_rank, paired_difference


def compare_runs(folders: Sequence[Path], console: Console) -> list[dict[str, Any]]:
    """Print the students' MRR for each language, text and tokenizer, with the differences from the first run's.

    folders  runs that were evaluated on the same masked tokens: same text, teachers, masking and seed
    Returns one dictionary for each language, text and tokenizer. Raises RunFolderError where a run was not evaluated
    or on other tokens.
    """
    found = [_ranks(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    rows = []
    for key in [key for key in found[0] if key.endswith("/student")]:
        place = key.removesuffix("/student")
        language, text, view, teacher = place.split("/")
        counts, first = found[0][f"{place}/counts"], 1.0 / found[0][key].astype(np.float64)
        row: dict[str, Any] = {
            "language": language, "text": text, "tokenizer": teacher or view, "masked": len(first),
        }  # fmt: skip
        if teacher:
            theirs = found[0][f"{place}/{teacher}"].astype(np.float64)
            row["teacher"] = mean_reciprocal_rank(theirs)
            row[f"teacher - {names[0]}"] = paired_difference(1.0 / theirs, first, counts)._asdict()
        for folder, name, ranks in zip(folders, names, found, strict=True):
            own = ranks.get(key)
            if own is None or not np.array_equal(ranks[f"{place}/counts"], counts):
                raise RunFolderError(
                    "run", str(folder), f"was not evaluated on the masked tokens of {folders[0]} ({place})",
                    "compare runs of the same text, teachers, masking and seed",
                )  # fmt: skip
            row[name] = mean_reciprocal_rank(own.astype(np.float64))
            if folder != folders[0]:
                row[f"{name} - {names[0]}"] = paired_difference(
                    1.0 / own.astype(np.float64), first, counts
                )._asdict()
        rows.append(row)
    console.print(_table(rows, names))
    console.print(
        f"MRR, the difference from that of {names[0]}, and its 95 % interval by a paired bootstrap over examples, "
        "* where it leaves zero out. The interval knows the chance of the texts, not of the training's seed.",
        markup=False,
    )
    return rows


def _ranks(folder: Path) -> dict[str, Any]:
    path = folder / "evaluation" / "ranks.npz"
    if not path.is_file():
        raise RunFolderError(
            "run",
            str(folder),
            "has no evaluation/ranks.npz",
            "run `polydistill evaluate` on its recipe first",
        )
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Table:
    """A line for each model under each place: as many runs as there are, the table is as wide as a terminal."""
    table = Table(box=box.SIMPLE)
    table.add_column("", overflow="fold")
    for heading in ("MRR", "difference", "from", "to"):
        table.add_column(heading, no_wrap=True, justify="right")
    for row in rows:
        place = f"{row['language']}, {row['text']}: {row['masked']:,} tokens of {row['tokenizer']}"
        table.add_row(f"[bold]{escape(place)}[/bold]")
        for name in ("teacher", *names):
            if name not in row:
                continue
            cells = [f"  {escape(name)}", f"{row[name]:.3f}"]
            difference = row.get(f"{name} - {names[0]}")
            if difference is not None:
                value = Difference(**difference)
                cells.append(f"{value.value:+.3f}" + ("*" if value.settled else " "))
                cells += [f"{value.low:+.3f}", f"{value.high:+.3f}"]
            table.add_row(*cells)
    return table
