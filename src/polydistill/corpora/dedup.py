"""Which of equal lines, or examples, to keep: on hashes in files, with bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

# Evaluation texts are numbered from EVALUATION on.
TRAIN, HELD_OUT, EVALUATION = range(3)
# Items whose hashes are sorted at once, about 60 bytes each.
PARTITION_ITEMS = 1 << 18
_ROW = np.dtype([("hash", "<u8"), ("place", "<u8"), ("split", "u1")])


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
    added text never removes held-out text. Items are parted by the range of their hashes in a file beside
    `path`, and each range is sorted alone: each item is loaded once, whatever the number of ranges.
    """
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    lost: Counter[tuple[int, int]] = Counter()
    if not starts[-1]:
        return np.ones(0, dtype=bool), lost
    keep = np.memmap(path, dtype=bool, mode="w+", shape=(int(starts[-1]),))
    keep[:] = True if among is None else among
    with TemporaryFile(dir=path.parent) as file:
        buckets = _Buckets(file, max(1, -(-int(starts[-1]) // partition_items)), partition_items)
        for part, start in enumerate(starts[:-1]):
            items = load(part)
            rows = np.empty(len(items.hashes), dtype=_ROW)
            rows["hash"], rows["split"] = items.hashes, items.splits
            rows["place"] = np.arange(start, start + len(rows))
            buckets.add(rows if among is None else rows[among[start : start + len(rows)]])
        for partition in range(buckets.number):
            rows = _repeated(buckets.read(partition))
            same = np.zeros(len(rows), dtype=bool)
            same[1:] = rows["hash"][1:] == rows["hash"][:-1]
            # The first of each group of equal items is kept; its split is why the others are dropped.
            first = np.maximum.accumulate(np.where(same, 0, np.arange(len(rows))))
            losers, winners = rows["split"][same], rows["split"][first][same]
            lost.update(zip(losers.tolist(), winners.tolist(), strict=True))
            keep[rows["place"][same]] = False
    return keep, lost


def _repeated(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The rows whose hash others have too, by hash, then by what is kept first. Few are, and sorting those
    alone by three keys takes a fraction of the time.
    """
    rows = rows[np.argsort(rows["hash"], kind="stable")]
    # Whether each row equals the one before it: false before the first, and after the last.
    equal = np.zeros(len(rows) + 1, dtype=bool)
    equal[1:-1] = rows["hash"][1:] == rows["hash"][:-1]
    rows = rows[equal[1:] | equal[:-1]]
    rank = np.where(rows["split"] == HELD_OUT, 0, np.where(rows["split"] == TRAIN, 1, 2))
    return rows[np.lexsort((rows["place"], rank, rows["hash"]))]


class _Buckets:
    """Rows in a file, parted by the range of their hashes: each is written once and read once.

    number  of ranges
    items   rows that are held in memory
    """

    def __init__(self, file: IO[bytes], number: int, items: int) -> None:
        self.file, self.number, self.items = file, number, items
        self.width = np.uint64(min(2**64 - 1, 2**64 // number))
        self.held: list[npt.NDArray[np.void]] = []
        # [blocks][number + 1] where each range starts in a block that was written, in rows of the file.
        self.borders: list[npt.NDArray[np.int64]] = []

    def add(self, rows: npt.NDArray[np.void]) -> None:
        """Add rows."""
        self.held.append(rows)
        if sum(map(len, self.held)) >= self.items:
            self._write()

    def _write(self) -> None:
        rows = np.concatenate(self.held)
        ranges = np.minimum(rows["hash"] // self.width, np.uint64(self.number - 1)).astype(np.int64)
        begin = int(self.borders[-1][-1]) if self.borders else 0
        counts = np.bincount(ranges, minlength=self.number)
        self.borders.append(begin + np.concatenate([[0], np.cumsum(counts)]))
        self.file.write(rows[np.argsort(ranges, kind="stable")].tobytes())
        self.held = []

    def read(self, number: int) -> npt.NDArray[np.void]:
        """The rows of a range, in the order in which they were added."""
        if self.held:
            self._write()
        read = []
        for borders in self.borders:
            first, last = (int(border) for border in borders[number : number + 2])
            self.file.seek(first * _ROW.itemsize)
            read.append(self.file.read((last - first) * _ROW.itemsize))
        return np.frombuffer(b"".join(read), dtype=_ROW)


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
