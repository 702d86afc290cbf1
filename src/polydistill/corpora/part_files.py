"""Finished parts on disk: a file's name holds its checksum, so what a crash cut short is recognised."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import xxhash

from polydistill.corpora.part_work import read_stream
from polydistill.disk import explain_disk_errors


class PartFiles:
    """The results of one step of work, by part; those that an earlier run left are used again."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        folder.mkdir(parents=True, exist_ok=True)
        self._left: dict[int, Path] = {}
        self._whole: dict[int, Path] = {}
        for path in sorted(folder.glob(f"{name}-*.arrow")):
            self._left[int(path.name.split(".")[0].removeprefix(f"{name}-"))] = path

    def __len__(self) -> int:
        return len(self._whole)

    def has(self, index: int) -> bool:
        """Whether a part is there, whole."""
        left = self._left.pop(index, None)
        if left is not None:
            if left.name == self._name(index, left.read_bytes()):
                self._whole[index] = left
            else:
                left.unlink()
        return index in self._whole

    def write(self, index: int, data: bytes) -> None:
        """Write a part. Not synced: after a power cut, its checksum tells whether it is whole."""
        path = self.folder / self._name(index, data)
        temporary = path.with_suffix(".tmp")
        with explain_disk_errors(self.folder):
            temporary.write_bytes(data)
            temporary.replace(path)
        self._whole[index] = path

    def read(self, index: int) -> bytes:
        """A part's bytes."""
        return self._whole[index].read_bytes()

    def table(self, index: int) -> pa.Table:
        """A part's table, memory-mapped."""
        with pa.memory_map(str(self._whole[index])) as source:
            return read_stream(source.read_buffer())

    def _name(self, index: int, data: bytes) -> str:
        return f"{self.name}-{index:06d}.{xxhash.xxh3_128_hexdigest(data)}.arrow"
