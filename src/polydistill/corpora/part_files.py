"""Finished parts on disk: a file's name holds its checksum, so what a crash cut short is recognised.

Where workers share the driver's disk they write their results themselves: the driver only notes the names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from polydistill.corpora.part_work import read_stream
from polydistill.corpora.pool import Work
from polydistill.disk import explain_disk_errors


@dataclass(frozen=True)
class Into:
    """Work on parts, and where a worker writes the results: see `PartFiles` and `Pool.map`."""

    work: Work
    shared: object
    folder: Path
    name: str


def work_into(into: Into, index: int, *arguments: Any) -> bytes:
    """Work on a part and write the result; returns its file's name."""
    return _write(into.folder, into.name, index, into.work(into.shared, *arguments)).encode()


class PartFiles:
    """The results of one step of work, by part; those that an earlier run left are used again."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        folder.mkdir(parents=True, exist_ok=True)
        self._left: dict[int, Path] = {}
        self._whole: dict[int, Path] = {}
        # A digit: one step's name may begin with another's.
        for path in sorted(folder.glob(f"{name}-[0-9]*.arrow")):
            self._left[int(path.name.split(".")[0].removeprefix(f"{name}-"))] = path

    def __len__(self) -> int:
        return len(self._whole)

    def has(self, index: int) -> bool:
        """Whether a part is there, whole."""
        left = self._left.pop(index, None)
        if left is not None:
            if left.name == _name(self.name, index, left.read_bytes()):
                self._whole[index] = left
            else:
                left.unlink()
        return index in self._whole

    def write(self, index: int, data: bytes) -> None:
        """Write a part."""
        self.note(index, _write(self.folder, self.name, index, data))

    def note(self, index: int, file: str) -> None:
        """A part's file is there."""
        self._whole[index] = self.folder / file

    def place(self, index: int) -> Path:
        """Where a part is, for other processes."""
        return self._whole[index].resolve()

    def read(self, index: int) -> bytes:
        """A part's bytes."""
        return self._whole[index].read_bytes()

    def table(self, index: int) -> pa.Table:
        """A part's table, memory-mapped."""
        with pa.memory_map(str(self._whole[index])) as source:
            return read_stream(source.read_buffer())


def _write(folder: Path, name: str, index: int, data: bytes) -> str:
    """Write a part; returns its name. Not synced: after a power cut, the checksum tells if it is whole."""
    path = folder / _name(name, index, data)
    # A worker that was thought lost may still write.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with explain_disk_errors(folder):
        temporary.write_bytes(data)
        temporary.replace(path)
    return path.name


def _name(name: str, index: int, data: bytes) -> str:
    return f"{name}-{index:06d}.{xxhash.xxh3_128_hexdigest(data)}.arrow"
