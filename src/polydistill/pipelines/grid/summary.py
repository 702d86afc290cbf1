"""A grid's summary: means over seeds, differences from the baseline, and intervals of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.artefacts import artefact_places
from polydistill.config.finetune import FinetuneRecipe
from polydistill.config.grid import GridRecipe
from polydistill.config.shared import RunRecipe
from polydistill.disk import Json, hash_text
from polydistill.evaluation.verdicts import holm, verdict
from polydistill.pipelines.grid.words import ARRAYS, WORDS, array_of
from polydistill.reports.grid_page import LESS_IS_BETTER, NATS, column_of
from polydistill.tasks.estimates import Estimate, Variant, difference_estimates, level_estimates
from polydistill.tasks.predictions import predicted_items, stored_rows
from polydistill.tasks.scores import Items, resample

# Only the standard deviation of the samples is used: this many give it to 2 %.
SAMPLES = 1000
LEVEL = 0.95
MRR = "MRR"


class Cell(NamedTuple):
    """A row's items.

    trainings  one for each training whose mean the row is
    texts      what the items are: rows of equal `texts` have the same items
    guessed    what is guessed of them: only rows of equal `guessed` are compared
    """

    trainings: list[Items]
    texts: str
    guessed: str


Arrays = npt.NDArray[Any]
# Column → seed → its row.
Columns = dict[str, dict[int | None, Json]]


def summary(recipe: GridRecipe, children: Mapping[str, RunRecipe], rows: Sequence[Json]) -> Json:
    """`rows`: for each place, measure, model and reader, each variant's mean over seeds with its interval,
    and its difference from the baseline's with interval, p-value, Holm's adjusted one and verdict.

    A family of comparisons is all differences of one measure in the grid. Differences are those of what runs
    make, not of their teachers, and only where both guess the same things of the same items.
    """
    baseline = recipe.baseline or next(iter(recipe.makes))
    places: dict[tuple[str, str, str, str], Columns] = {}
    for row in rows:
        key, column = column_of(row, recipe.makes)
        places.setdefault(key, {}).setdefault(column, {})[row["seed"]] = row
    entries: list[Json] = []
    for key, columns in places.items():
        entry: Json = dict(zip(("place", "measure", "model", "read_by"), key, strict=True))
        entries.append(entry | _estimates(recipe, children, key, columns, baseline))
    for measure in dict.fromkeys(entry["measure"] for entry in entries):
        _judge([entry for entry in entries if entry["measure"] == measure], baseline, recipe)
    return {"baseline": baseline, "level": LEVEL, "margin": recipe.equivalence_margin, "rows": entries}


def _estimates(
    recipe: GridRecipe,
    children: Mapping[str, RunRecipe],
    key: tuple[str, str, str, str],
    columns: Columns,
    baseline: str,
) -> Json:
    levels: dict[str, Estimate] = {}
    differences: dict[str, Estimate] = {}
    cells = {
        column: {seed: _cell(recipe, children[row["run"]], row) for seed, row in by_seed.items()}
        for column, by_seed in columns.items()
    }
    for names in _alike(columns, cells):
        chosen = {name: columns[name] for name in names}
        variants = _variants("/".join(key), chosen, {name: cells[name] for name in names})
        levels |= level_estimates(variants, level=LEVEL)
        row = next(iter(columns[names[0]].values()))
        if baseline in names and row["model"] not in ("teacher", row["teacher"]):
            made = {name: variant for name, variant in variants.items() if name in recipe.makes}
            differences |= difference_estimates(made, baseline, level=LEVEL)
    return {
        "cells": {
            name: {
                **levels[name]._asdict(),
                "seeds": len(columns[name]),
                "deviation": _deviation(columns[name]),
            }
            for name in columns
        },
        "differences": {name: differences[name]._asdict() for name in columns if name in differences},
    }


def _alike(columns: Columns, cells: Mapping[str, Mapping[int | None, Cell | None]]) -> list[list[str]]:
    """Columns that guess the same things of the same items with the same seeds, together."""
    alike: dict[str, list[str]] = {}
    for name, by_seed in columns.items():
        what = [
            (seed, "" if (cell := cells[name][seed]) is None else cell.guessed)
            for seed in sorted_seeds(by_seed)
        ]
        alike.setdefault(repr(what), []).append(name)
    return list(alike.values())


def sorted_seeds(by_seed: Mapping[int | None, object]) -> list[int | None]:
    """Seeds in order."""
    return sorted(by_seed, key=lambda seed: -1 if seed is None else seed)


def _variants(
    key: str, columns: Columns, cells: Mapping[str, Mapping[int | None, Cell | None]]
) -> dict[str, Variant]:
    """Each column's scores and bootstrap samples; one draw of items for all seeds that have the same ones."""
    seeds = sorted_seeds(next(iter(columns.values())))
    scores = {
        name: np.array([columns[name][seed]["value"] for seed in seeds], dtype=np.float64) for name in columns
    }
    found = [cell for by_seed in cells.values() for cell in by_seed.values()]
    if any(cell is None for cell in found):
        return {name: Variant(values) for name, values in scores.items()}
    whole = [cell for cell in found if cell is not None]
    joint = len({cell.texts for cell in whole}) == 1
    row = next(iter(columns[next(iter(columns))].values()))
    metric = str(row.get("metric", row["measure"]))
    samples: dict[str, list[Arrays]] = {name: [] for name in columns}
    for seed in seeds:
        owners = [(name, items) for name in columns for items in _trainings(cells[name][seed])]
        # Every seed starts from the same generator: the same items are drawn where they are the same.
        generator = np.random.default_rng(hash_text(key))
        drawn = resample([items for _, items in owners], metric, samples=SAMPLES, generator=generator)
        for name in columns:
            own = [index for index, (owner, _) in enumerate(owners) if owner == name]
            samples[name].append(drawn[:, own].mean(1))
    items = len(whole[0].trainings[0])
    return {name: Variant(scores[name], np.stack(samples[name], 1), items, joint) for name in columns}


def _trainings(cell: Cell | None) -> list[Items]:
    return [] if cell is None else cell.trainings


def _deviation(by_seed: Mapping[int | None, Json]) -> float | None:
    values = [row["value"] for row in by_seed.values()]
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _cell(recipe: GridRecipe, child: RunRecipe, row: Json) -> Cell | None:
    """A row's items; None where none are kept, as of probes."""
    if row["measure"] == NATS:
        return _worded(recipe.folder / WORDS / ARRAYS, row)
    if "task" in row and isinstance(child, FinetuneRecipe):
        return _tuned(child, row)
    if row["measure"] == MRR:
        return _ranked(child.folder, row)
    return None


def _tuned(child: FinetuneRecipe, row: Json) -> Cell | None:
    task = child.tasks[row["task"]]
    places = artefact_places(child.folder)
    source = task.source or row["target"]
    folders = [
        places[place]
        for index in range(child.num_seeds)
        if (place := f"jobs/{row['task']}/{row['model']}/{source}-{child.seed + index}") in places
    ]
    if not folders:
        return None
    gold = hash_text(repr([stored["gold"] for stored in stored_rows(folders[0], row["target"])]))
    items = [predicted_items(folder, task, row["target"]) for folder in folders]
    return Cell(items, str(gold), str(gold))


def _ranked(folder: Path, row: Json) -> Cell | None:
    """Examples as items: sums of reciprocal ranks, and numbers of masked tokens."""
    # Balance runs evaluate into a folder of their own.
    path = next(
        (
            folder / "evaluation" / place
            for place in ("mlm/ranks.npz", "ranks.npz")
            if (folder / "evaluation" / place).is_file()
        ),
        None,
    )
    if path is None:
        return None
    arrays = _arrays(path, path.stat().st_mtime_ns)
    place = f"{row['language']}/{row['text']}/{row['tokenizer']}/{row['teacher'] or ''}"
    ranks, counts = arrays.get(f"{place}/{row['model']}"), arrays.get(f"{place}/counts")
    if ranks is None or counts is None or len(counts) < 2:
        return None
    sums = np.add.reduceat(1.0 / ranks.astype(np.float64), np.concatenate([[0], np.cumsum(counts)[:-1]]))
    items = Items({MRR: np.stack([sums, counts.astype(np.float64)], 1)})
    # Of examples without a masked token nothing is kept: then seeds, whose masks differ, cannot be aligned.
    texts = f"{row['place']} {len(counts)}"
    if len(counts) != row["examples"]:
        texts += f" of seed {row['seed']}"
    return Cell([items], texts, f"{texts} {hash_text(counts.tobytes().hex())}")


def _worded(path: Path, row: Json) -> Cell:
    """Examples as items: nats of hidden words, and their characters."""
    counts = _arrays(path, path.stat().st_mtime_ns)[array_of(row["run"], row["language"], row["text"])]
    # Equal characters in every example are the same words of the same examples, whatever the seed.
    texts = f"{row['place']} {hash_text(counts[:, 1].tobytes().hex())}"
    return Cell([Items({NATS: counts})], texts, texts)


@lru_cache(maxsize=8)
def _arrays(path: Path, changed: int) -> dict[str, Arrays]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _judge(entries: Sequence[Json], baseline: str, recipe: GridRecipe) -> None:
    """Add Holm's adjusted p-values over all differences of a measure, and verdicts."""
    cells = [(entry, cell) for entry in entries for cell in entry["differences"].values()]
    for (entry, cell), adjusted in zip(cells, holm([cell["p"] for _, cell in cells]), strict=True):
        margin = recipe.equivalence_margin
        base = abs(entry["cells"][baseline]["value"])
        cell["adjusted"] = adjusted
        # Nothing is known of chance: no verdict.
        known = cell["knows"] != "nothing"
        cell["settled"] = known and adjusted <= 1 - LEVEL
        less = entry["measure"] in LESS_IS_BETTER
        cell["verdict"] = (
            verdict(
                -cell["high"] if less else cell["low"],
                -cell["low"] if less else cell["high"],
                None if margin is None else margin / 100 * base,
                excludes_zero=cell["settled"],
            )
            if known
            else "not settled"
        )
