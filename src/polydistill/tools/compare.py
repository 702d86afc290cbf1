"""Finished runs side by side: MRR on the same masked tokens, and intervals of the differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import yaml
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polydistill.config.yaml_text import read_resolved
from polydistill.disk import Json
from polydistill.errors import RunFolderError
from polydistill.evaluation.mlm import mean_reciprocal_rank
from polydistill.evaluation.uncertainty import paired_difference
from polydistill.evaluation.verdicts import starred
from polydistill.reports.records import check_evaluation
from polydistill.tools.compare_balance import Evaluated, compare_balance

# Kinds of runs that have students to compare.
KINDS = ("merge", "extract", "balance")
# The keys of a row in addition to the runs' names.
COLUMNS = {"language", "text", "tokenizer", "masked", "teacher"}


class Comparison(NamedTuple):
    """The names of compared runs, and the rows of their table."""

    names: list[str]
    rows: list[Json]


def compare_runs(folders: Sequence[Path], console: Console) -> Comparison:
    """Print how the students of finished runs differ: see `compare_merges` and `compare_balance`.

    folders  merges and extractions, or balance runs, that were evaluated on the same masked tokens
    Returns the runs' names, and the table's rows (of merges and extractions).
    Raises RunFolderError for any other folder, and for a run that was not evaluated, or on other tokens.
    """
    recipes = [_recipe(folder) for folder in folders]
    balance = [recipe["recipe"] == "balance" for recipe in recipes]
    if any(balance) and not all(balance):
        other = balance.index(not balance[0])
        raise RunFolderError(
            "run",
            str(folders[other]),
            f"is a run of the kind {recipes[other]['recipe']!r}, and {folders[0]} of the kind "
            f"{recipes[0]['recipe']!r}",
            "compare balance runs with each other, and merges and extractions with each other",
        )
    names = [folder.resolve().name for folder in folders]
    if not COLUMNS.isdisjoint(names):
        names = [str(folder.resolve()) for folder in folders]
    elif len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if balance[0]:
        # A run that is named twice counts once.
        once = {name: (folder, recipe) for name, folder, recipe in zip(names, folders, recipes, strict=True)}
        compare_balance([_evaluated(name, *place) for name, place in once.items()], console)
        return Comparison(names, [])
    ranks = [_ranks(folder, "evaluation/ranks.npz") for folder in folders]
    return Comparison(names, compare_merges(folders, names, ranks, console))


def compare_merges(
    folders: Sequence[Path], names: Sequence[str], ranks_of_runs: Sequence[Json], console: Console
) -> list[Json]:
    """Print the students' MRR for each language, text and tokenizer, and differences from the first run's.

    ranks_of_runs  each run's ranks
    Raises RunFolderError for a run that was evaluated on other tokens.
    """
    rows = []
    for key in [key for key in ranks_of_runs[0] if key.endswith("/student")]:
        place = key.removesuffix("/student")
        language, text, view, teacher = place.split("/")
        counts, first = ranks_of_runs[0][f"{place}/counts"], 1.0 / ranks_of_runs[0][key].astype(np.float64)
        row: Json = {
            # The keys of COLUMNS; each run adds a key of its name.
            "language": language,
            "text": text,
            "tokenizer": teacher or view,
            "masked": len(first),
        }
        if teacher:
            theirs = ranks_of_runs[0][f"{place}/{teacher}"].astype(np.float64)
            row["teacher"] = mean_reciprocal_rank(theirs)
            row[f"teacher - {names[0]}"] = paired_difference(1.0 / theirs, first, counts)._asdict()
        for folder, name, ranks in zip(folders, names, ranks_of_runs, strict=True):
            own = ranks.get(key)
            if own is None or not np.array_equal(ranks[f"{place}/counts"], counts):
                raise RunFolderError(
                    "run",
                    str(folder),
                    f"was not evaluated on the masked tokens of {folders[0]} ({place})",
                    "compare runs of the same text, teachers, masking and seed",
                )
            row[name] = mean_reciprocal_rank(own.astype(np.float64))
            if folder != folders[0]:
                row[f"{name} - {names[0]}"] = paired_difference(
                    1.0 / own.astype(np.float64), first, counts
                )._asdict()
        rows.append(row)
    _star(rows)
    console.print(_table(rows, names))
    console.print(
        f"MRR, the difference from that of {names[0]}, and its 95 % interval by a paired bootstrap over "
        "examples, * where it differs from zero after Holm's correction for all that are shown. The interval "
        "reflects sampling of the text, not variation between seeds.",
        markup=False,
    )
    return rows


def _star(rows: Sequence[Json]) -> None:
    """Set `starred` of all differences."""
    cells = [cell for row in rows for key, cell in row.items() if " - " in key and isinstance(cell, dict)]
    for cell, star in zip(cells, starred(cells), strict=True):
        cell["starred"] = star


def _recipe(folder: Path) -> Json:
    """The recipe of a run that can be compared; RunFolderError for any other folder."""
    try:
        recipe = read_resolved(folder / "recipe.yaml")
    except OSError as error:
        raise RunFolderError(
            "run", str(folder), "is not a run's folder: it has no recipe.yaml", "name the folder of a run"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RunFolderError(
            "run",
            str(folder),
            f"its recipe.yaml is damaged ({type(error).__name__})",
            "rerun its recipe with --update, which rewrites the file",
        ) from error
    kind = recipe.get("recipe") if isinstance(recipe, dict) else None
    if kind not in KINDS:
        raise RunFolderError(
            "run",
            str(folder),
            f"cannot be compared: its recipe.yaml's kind is {kind!r}",
            f"compare runs of the kinds {', '.join(KINDS)}",
        )
    return dict(recipe)


def _evaluated(name: str, folder: Path, recipe: Json) -> Evaluated:
    ranks = _ranks(folder, "evaluation/mlm/ranks.npz")
    # From the folder of the ranks: the file in evaluation/ itself may be of an earlier evaluation.
    results = check_evaluation(folder / "evaluation" / "mlm" / "mlm.json")
    probes = folder / "evaluation" / "probes.json"
    languages = list(results["languages"])
    groups = {
        group: [language for language in members if language in languages]
        for group, members in (recipe.get("groups") or {}).items()
    }
    return Evaluated(
        name,
        str(folder),
        languages,
        list(results["summary"]["D"]),
        groups,
        ranks,
        check_evaluation(probes)["scores"] if probes.is_file() else {},
    )


def _ranks(folder: Path, place: str) -> Json:
    path = folder / place
    if not path.is_file():
        raise RunFolderError(
            "run", str(folder), f"has no {place}", "run `polydistill evaluate` on its recipe first"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, BadZipFile) as error:
        raise RunFolderError(
            "run",
            str(folder),
            f"its {place} is damaged ({error})",
            "remove its folder `evaluation` and evaluate again",
        ) from error


def _table(rows: Sequence[Json], names: Sequence[str]) -> Table:
    """A line for each model under each place, so that the table fits a terminal with any number of runs."""
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
                cells.append(f"{difference['value']:+.3f}" + ("*" if difference["starred"] else " "))
                cells += [f"{difference['low']:+.3f}", f"{difference['high']:+.3f}"]
            table.add_row(*cells)
    return table
