"""Reading a store by memory map, with checks of its format, identity and shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from polydistill.disk import fingerprint, hash_file, read_json
from polydistill.errors import StoreError
from polydistill.store.schema import FORMAT, MANIFEST, NUMBER, Manifest


@dataclass(frozen=True)
class StoreRow:
    """One example of a store; arrays are views into the memory map."""

    example: int
    loss: float
    input_ids: npt.NDArray[np.unsignedinteger]
    positions: npt.NDArray[np.unsignedinteger]
    gold: npt.NDArray[np.unsignedinteger]
    gold_logprobs: npt.NDArray[np.float16]
    top_ids: npt.NDArray[np.unsignedinteger]
    top_logprobs: npt.NDArray[np.float16]


class _Batch:
    """The flat arrays of one record batch."""

    def __init__(self, batch: pa.RecordBatch, top_k: int) -> None:
        def flat(array: pa.Array) -> npt.NDArray[Any]:
            return np.asarray(array.to_numpy(zero_copy_only=True))

        ids, masked = batch.column("input_ids"), batch.column("masked")
        structs = masked.values
        self.examples = flat(batch.column("example"))
        self.losses = flat(batch.column("loss"))
        self.id_offsets, self.ids = flat(ids.offsets), flat(ids.values)
        self.offsets = flat(masked.offsets)
        self.positions, self.gold = flat(structs.field("position")), flat(structs.field("gold"))
        self.gold_logprobs = flat(structs.field("gold_logprob"))
        self.top_ids = flat(structs.field("top_ids").values).reshape(-1, top_k)
        self.top_logprobs = flat(structs.field("top_logprobs").values).reshape(-1, top_k)

    def row(self, index: int) -> StoreRow:
        tokens = slice(self.id_offsets[index], self.id_offsets[index + 1])
        masked = slice(self.offsets[index], self.offsets[index + 1])
        return StoreRow(
            int(self.examples[index]),
            float(self.losses[index]),
            self.ids[tokens],
            self.positions[masked],
            self.gold[masked],
            self.gold_logprobs[masked],
            self.top_ids[masked],
            self.top_logprobs[masked],
        )


class Store:
    """A finished store, by memory map.

    Raises StoreError if there is none, if its format differs, or if a shard is missing or truncated.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / MANIFEST).is_file():
            raise StoreError(
                "store", str(folder), "holds no manifest.json", "score first: `polydistill score RECIPE`"
            )
        manifest = read_json(folder / MANIFEST)
        version = manifest.get("format") if isinstance(manifest, dict) else None
        if version != FORMAT:
            raise StoreError(
                "store", str(folder), f"has format {version}, but this version reads {FORMAT}", "score again"
            )
        try:
            Manifest.model_validate(manifest)
        except ValidationError as error:
            first = error.errors()[0]
            raise StoreError(
                "store",
                str(folder / MANIFEST),
                f"is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']})",
                self._remedy(),
            ) from None
        self.manifest: dict[str, Any] = manifest
        self.identity: dict[str, Any] = manifest["identity"]
        for shard in manifest["shards"]:
            path = folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                size = path.stat().st_size if path.is_file() else "no"
                raise StoreError(
                    "store",
                    str(path),
                    f"has {size} bytes, but the manifest has {shard['bytes']}",
                    self._remedy(),
                )
        self._starts = np.cumsum([0] + [shard["examples"] for shard in manifest["shards"]])
        self._batches: dict[int, list[_Batch]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_masked(self) -> int:
        """Masked positions in the store."""
        return sum(shard["masked"] for shard in self.manifest["shards"])

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard["bytes"] for shard in self.manifest["shards"])

    def row(self, index: int) -> StoreRow:
        """The example at an index in the store's order."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        within = index - int(self._starts[shard])
        for batch in self._shard(shard):
            if within < len(batch.examples):
                return batch.row(within)
            within -= len(batch.examples)
        raise IndexError(index)

    @cached_property
    def examples(self) -> npt.NDArray[np.uint64]:
        """[N] ids of the examples, in the store's order."""
        return self._column("examples", np.uint64)

    @cached_property
    def losses(self) -> npt.NDArray[np.float32]:
        """[N] the teacher's mean loss in nats over each example's masked tokens."""
        return self._column("losses", np.float32)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[N] tokens of each example, special tokens included."""
        parts = [np.diff(batch.id_offsets) for batch in self._all_batches()]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    @cached_property
    def num_masked_of(self) -> npt.NDArray[np.int64]:
        """[N] masked tokens of each example."""
        parts = [np.diff(batch.offsets) for batch in self._all_batches()]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    def check_identity(self, asked: dict[str, Any], *, field: str) -> None:
        """Raise StoreError if the store's identity is not the one that a recipe needs.

        field  the recipe's field, such as `languages.sw`
        """
        for key, value in asked.items():
            if self.identity.get(key) != value:
                raise StoreError(
                    f"{field}, store {self.folder}",
                    None,
                    f"its {key} is {_short(self.identity.get(key))}, but the recipe needs {_short(value)}",
                    "score again with this recipe, or choose another `output`",
                )

    def verify(self) -> None:
        """Read every shard and compare its checksum; StoreError names the first damaged one."""
        for shard in self.manifest["shards"]:
            path = self.folder / shard["file"]
            if hash_file(path) != shard["checksum"]:
                raise StoreError(
                    "store", str(path), "its checksum is not the manifest's: it is damaged", self._remedy()
                )

    def _remedy(self) -> str:
        return f"remove the folder {self.folder} and score again: complete stores of other languages are kept"

    def _column(self, name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
        parts = [getattr(batch, name) for batch in self._all_batches()]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)

    def _all_batches(self) -> Iterator[_Batch]:
        for index in range(len(self._starts) - 1):
            yield from self._shard(index)

    def _shard(self, index: int) -> list[_Batch]:
        if index not in self._batches:
            shard = self.manifest["shards"][index]
            path = self.folder / shard["file"]
            try:
                reader = pa.ipc.open_stream(pa.memory_map(str(path)))
                metadata = reader.schema.metadata or {}
                made_for = metadata.get(b"identity", b"").decode("utf-8", "replace")
                number = metadata.get(NUMBER.encode())
                batches = [_Batch(batch, self.identity["top_k"]) for batch in reader]
            except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
                raise StoreError("store", str(path), f"cannot be read ({error})", self._remedy()) from error
            rows = sum(len(batch.examples) for batch in batches)
            if made_for != fingerprint(self.identity) or rows != shard["examples"]:
                raise StoreError(
                    "store",
                    str(path),
                    f"is not the manifest's: it holds {rows} examples of store {made_for}",
                    self._remedy(),
                )
            # Earlier versions gave shards no number, neither in the shard nor in the manifest.
            if number != (None if shard.get("number") is None and number is None else str(index).encode()):
                stored = "none" if number is None else number.decode("utf-8", "replace")[:20]
                raise StoreError(
                    "store",
                    str(path),
                    f"is another shard: its number is {stored} instead of {index}",
                    self._remedy(),
                )
            self._batches[index] = batches
        return self._batches[index]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
