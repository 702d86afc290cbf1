"""Cleaned lines on disk, and which of them to keep: deduplication with bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polydistill.disk import hash_text

# Evaluation texts are numbered from EVALUATION on.
TRAIN, HELD_OUT, EVALUATION = range(3)
_BATCH = 4096
# Lines whose hashes are sorted at once, 16 bytes each.
_PARTITION_LINES = 4_000_000

_SCHEMA = pa.schema([("text", pa.string()), ("split", pa.uint8()), ("run", pa.uint32())])


class Spool:
    """Lines in a folder: text and split in an Arrow stream, hashes in a flat file.

    Lines with the same `run` number may be packed together: consecutive documents of one file and one split.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.text, self.hashes, self.splits = (
            folder / "lines.arrow",
            folder / "hashes.bin",
            folder / "splits.bin",
        )
        self.num_lines = 0

    def write(self, lines: Iterable[tuple[str, int, int]]) -> None:
        """Write (text, split, run) lines, once."""
        with (
            pa.OSFile(str(self.text), "wb") as sink,
            pa.ipc.new_stream(sink, _SCHEMA) as writer,
            self.hashes.open("wb") as hashes,
            self.splits.open("wb") as splits,
        ):
            for batch in _chunks(lines, _BATCH):
                texts, kinds, runs = zip(*batch, strict=True)
                kind_array = np.array(kinds, dtype=np.uint8)
                arrays = [pa.array(texts, pa.string()), pa.array(kind_array), pa.array(runs, pa.uint32())]
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
                hashes.write(np.array([hash_text(text) for text in texts], dtype=np.uint64).tobytes())
                splits.write(kind_array.tobytes())
                self.num_lines += len(batch)

    def keep(
        self, dropped: Counter[str], *, partition_lines: int = _PARTITION_LINES
    ) -> npt.NDArray[np.bool_]:
        """[num_lines] which lines to keep.

        Of equal lines, keeps the first held-out one, else the first of training, else the first of
        evaluation. So added text never removes held-out text.

        dropped  counts `duplicate`, `in_held_out` (from training) and `in_training` (from evaluation)
        """
        keep = np.ones(self.num_lines, dtype=bool)
        if not self.num_lines:
            return keep
        hashes = np.memmap(self.hashes, dtype=np.uint64, mode="r")
        splits = np.memmap(self.splits, dtype=np.uint8, mode="r")
        partitions = max(1, -(-self.num_lines // partition_lines))
        width = np.uint64(min(2**64 - 1, 2**64 // partitions))
        for partition in range(partitions):
            parts = []
            for start in range(0, self.num_lines, partition_lines):
                block = hashes[start : start + partition_lines]
                parts.append(
                    start + np.flatnonzero(np.minimum(block // width, np.uint64(partitions - 1)) == partition)
                )
            rows = np.concatenate(parts)
            kinds = splits[rows]
            rank = np.where(kinds == HELD_OUT, 0, np.where(kinds == TRAIN, 1, 2))
            order = np.lexsort((rows, rank, hashes[rows]))
            same = np.zeros(len(rows), dtype=bool)
            ordered = hashes[rows[order]]
            same[1:] = ordered[1:] == ordered[:-1]
            # The first of each group of equal lines is kept; its split is the reason why the others are
            # dropped.
            starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(rows))))
            winners = kinds[order][starts]
            losers, lost = kinds[order][same], winners[same]
            dropped["in_held_out"] += int(((losers == TRAIN) & (lost == HELD_OUT)).sum())
            elsewhere = (losers >= EVALUATION) & (lost < EVALUATION)
            dropped["in_training"] += int(elsewhere.sum())
            dropped["duplicate"] += int((~elsewhere & ~((losers == TRAIN) & (lost == HELD_OUT))).sum())
            keep[rows[order][same]] = False
        return keep

    def read(self, keep: npt.NDArray[np.bool_]) -> Iterator[tuple[str, int, int]]:
        """The kept (text, split, run) lines in order."""
        place = 0
        with pa.memory_map(str(self.text)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                kept = keep[place : place + batch.num_rows]
                place += batch.num_rows
                columns = [column.to_pylist() for column in batch.columns]
                for index in np.flatnonzero(kept).tolist():
                    yield columns[0][index], columns[1][index], columns[2][index]


def _chunks(items: Iterable[tuple[str, int, int]], size: int) -> Iterator[list[tuple[str, int, int]]]:
    held: list[tuple[str, int, int]] = []
    for item in items:
        held.append(item)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
