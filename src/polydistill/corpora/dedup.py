"""Which of equal lines, or examples, to keep: on hashes in files, with bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Evaluation texts are numbered from EVALUATION on.
TRAIN, HELD_OUT, EVALUATION = range(3)
# Items whose hashes are sorted at once, about 30 bytes each.
PARTITION_ITEMS = 1 << 18


class Items(NamedTuple):
    """The lines, or examples, of a part.

    hashes  [n] uint64 of their texts
    splits  [n] uint8
    """

    hashes: npt.NDArray[np.uint64]
    splits: npt.NDArray[np.uint8]


def find_repeats(
    path: Path,
    sizes: Sequence[int],
    load: Callable[[int], Items],
    *,
    among: npt.NDArray[np.bool_] | None = None,
    partition_items: int = PARTITION_ITEMS,
) -> tuple[npt.NDArray[np.bool_], Counter[tuple[int, int]]]:
    """([sum of sizes] which items to keep, numbers of the others by (split, split of the one that is kept)).

    path   of a new file that holds the first result
    sizes  items of each part
    load   the items of a part by its number
    among  [sum of sizes] the items that are looked at, by default all; no other is kept
    Of equal items, keeps the first held-out one, else the first of training, else the first of evaluation. So
    added text never removes held-out text. Items are parted by the range of their hashes, and each range is
    sorted alone.
    """
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    lost: Counter[tuple[int, int]] = Counter()
    if not starts[-1]:
        return np.ones(0, dtype=bool), lost
    keep = np.memmap(path, dtype=bool, mode="w+", shape=(int(starts[-1]),))
    keep[:] = True if among is None else among
    partitions = max(1, -(-int(starts[-1]) // partition_items))
    width = np.uint64(min(2**64 - 1, 2**64 // partitions))
    for partition in range(partitions):
        found = []
        for part, start in enumerate(starts[:-1]):
            items = load(part)
            chosen = np.minimum(items.hashes // width, np.uint64(partitions - 1)) == partition
            if among is not None:
                chosen &= among[start : start + len(chosen)]
            rows = np.flatnonzero(chosen)
            found.append((start + rows, items.hashes[rows], items.splits[rows]))
        places, hashes, splits = (np.concatenate(column) for column in zip(*found, strict=True))
        rank = np.where(splits == HELD_OUT, 0, np.where(splits == TRAIN, 1, 2))
        order = np.lexsort((places, rank, hashes))
        same = np.zeros(len(order), dtype=bool)
        same[1:] = hashes[order][1:] == hashes[order][:-1]
        # The first of each group of equal items is kept; its split is why the others are dropped.
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
        losers, winners = splits[order][same], splits[order][first][same]
        lost.update(zip(losers.tolist(), winners.tolist(), strict=True))
        keep[places[order][same]] = False
    return keep, lost


def reasons(lost: Counter[tuple[int, int]]) -> Counter[str]:
    """Why lines were dropped: `in_held_out` (from training), `in_training` (from evaluation), `duplicate`."""
    counts: Counter[str] = Counter()
    for (loser, winner), number in lost.items():
        if loser == TRAIN and winner == HELD_OUT:
            counts["in_held_out"] += number
        elif loser >= EVALUATION > winner:
            counts["in_training"] += number
        else:
            counts["duplicate"] += number
    return counts
