"""Finished runs side by side: MRR on the same masked tokens, and which differences the texts settle."""

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
from polydistill.recipes.compare_balance import compare_balance, is_balance


def compare_runs(folders: Sequence[Path], console: Console) -> None:
    """Print what finished runs' students differ in: see `compare_merges` and `compare_balance`.

    folders  runs that were evaluated on the same masked tokens: same text, teachers, masking and seed
    Raises RunFolderError where a run was not evaluated, on other tokens, or is of another kind.
    """
    balance = [is_balance(folder) for folder in folders]
    if any(balance) and not all(balance):
        raise RunFolderError(
            "run", str(folders[balance.index(not balance[0])]), f"is of another kind than {folders[0]}",
            "compare balance runs with each other, and merges and extractions with each other",
        )  # fmt: skip
    found = [_ranks(folder, balance=balance[0]) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if balance[0]:
        compare_balance(folders, names, found, console)
    else:
        compare_merges(folders, names, found, console)


def compare_merges(
    folders: Sequence[Path], names: Sequence[str], found: Sequence[dict[str, Any]], console: Console
) -> list[dict[str, Any]]:
    """Print the students' MRR for each language, text and tokenizer, with the differences from the first run's.

    found  each run's ranks
    Returns one dictionary for each language, text and tokenizer. Raises RunFolderError for a run of other tokens.
    """
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


def _ranks(folder: Path, *, balance: bool) -> dict[str, Any]:
    place = "evaluation/mlm/ranks.npz" if balance else "evaluation/ranks.npz"
    path = folder / place
    if not path.is_file():
        raise RunFolderError(
            "run", str(folder), f"has no {place}", "run `polydistill evaluate` on its recipe first"
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
