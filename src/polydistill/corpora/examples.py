"""Examples on disk: Arrow streams that `datasets.Dataset.from_file` can also open."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polydistill.errors import CorpusError

SCHEMA = pa.schema([("id", pa.uint64()), ("text", pa.string()), ("num_tokens", pa.uint32())])


class Examples:
    """A file of examples, memory-mapped."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise CorpusError(
                "corpora", str(path), "is missing", "remove its folder and run again: it is built again"
            )
        try:
            self.table: pa.Table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise CorpusError(
                "corpora", str(path), f"is damaged ({error})", "remove its folder and run again"
            ) from error

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def ids(self) -> npt.NDArray[np.uint64]:
        """[N] stable ids: the hash of each text."""
        return np.asarray(self.table["id"].to_numpy())

    @cached_property
    def num_tokens(self) -> npt.NDArray[np.uint32]:
        """[N] tokens of each example without special tokens, by the tokenizer that makes the most of it."""
        return np.asarray(self.table["num_tokens"].to_numpy())

    @cached_property
    def num_characters(self) -> npt.NDArray[np.int64]:
        """[N] characters of each example."""
        return np.asarray(pc.utf8_length(self.table["text"]).to_numpy(), dtype=np.int64)

    def take(self, rows: npt.NDArray[np.int64]) -> Examples:
        """Only these rows, in memory."""
        part = object.__new__(Examples)
        part.table = self.table.take(pa.array(rows))
        return part

    def texts(self, rows: slice | npt.NDArray[np.int64]) -> list[str]:
        """The texts at rows."""
        column = self.table["text"]
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return [str(text) for text in column.slice(start, max(0, stop - start)).to_pylist()]
        # Not `take`, which may copy the whole column first.
        return [str(column[int(row)].as_py()) for row in rows]

    def rows_of(self, ids: Sequence[int] | npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """[n] the rows of examples by their ids; KeyError names the first id that is not there."""
        wanted = np.asarray(ids, dtype=np.uint64)
        order = self._by_id
        places = np.searchsorted(self.ids, wanted, sorter=order)
        rows = order[np.minimum(places, len(order) - 1)]
        missing = np.flatnonzero(self.ids[rows] != wanted)
        if len(missing):
            raise KeyError(int(wanted[missing[0]]))
        return rows

    @cached_property
    def _by_id(self) -> npt.NDArray[np.int64]:
        return np.argsort(self.ids, kind="stable")

    def first(self, number: int) -> npt.NDArray[np.int64]:
        """Rows of the examples with the smallest ids: a sample that hardly changes when text is added."""
        return self._by_id[:number]
