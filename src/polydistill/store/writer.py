"""Writing a store, shard by shard; an interrupted writer resumes at the next shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from pydantic import ValidationError

from polydistill.disk import fingerprint, hash_file, read_record, write_bytes, write_json
from polydistill.errors import StoreError
from polydistill.store.schema import FORMAT, MANIFEST, NUMBER, Manifest, numpy_dtype, shard_name, shard_schema

ROWS_PER_BATCH = 4096
# Ending of a shard's checksum file, which exists until the manifest is written.
CHECKSUM = ".xxh3"


@dataclass(frozen=True)
class ScoredExample:
    """One masked example with its teacher's predictions.

    example       id
    input_ids     [L]
    positions     [M], gold [M], gold_logprobs [M] nats
    top_ids       [M, K], top_logprobs [M, K] nats
    """

    example: int
    input_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    gold: npt.NDArray[np.int64]
    gold_logprobs: npt.NDArray[np.float32]
    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float32]


class StoreWriter:
    """Writes shards into a folder, each completely or not at all, and the manifest at the end.

    identity  what the store holds and depends on; its `vocabulary_size`, `max_length` and `top_k` determine
              the schema. Readers check it key by key.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        self.schema = shard_schema(
            identity["vocabulary_size"],
            identity["max_length"],
            identity["top_k"],
            {
                "format": str(FORMAT),
                "language": identity["language"],
                "teacher": identity["teacher"],
                "identity": fingerprint(identity),
            },
        )

    def has(self, index: int, examples: Sequence[int] | None = None) -> bool:
        """Whether a shard exists, undamaged, under its own name.

        examples  the ids that it may hold; they identify shards of earlier versions, which have no number
        """
        path = self.folder / shard_name(index)
        if not path.is_file() or hash_file(path) != self._written(path):
            return False
        return self.is_shard(index, path.read_bytes(), examples)

    def is_shard(self, index: int, data: bytes, examples: Sequence[int] | None = None) -> bool:
        """Whether the bytes are this store's shard of that number, by its metadata and its examples' ids."""
        try:
            reader = pa.ipc.open_stream(pa.py_buffer(data))
            metadata = reader.schema.metadata or {}
            if metadata.get(b"identity") != fingerprint(self.identity).encode():
                return False
            if metadata.get(NUMBER.encode(), str(index).encode()) != str(index).encode():
                return False
            if examples is None:
                return True
            stored = reader.read_all().column("example").to_pylist()
        except (pa.ArrowException, KeyError, ValueError):
            return False
        # In the order of the text, without examples that have no masked token: a subsequence.
        allowed = iter(examples)
        return all(any(example == candidate for candidate in allowed) for example in stored)

    def write(self, index: int, examples: list[ScoredExample]) -> None:
        """Write one shard, in the order of `examples`."""
        self.put(index, self.encode(index, examples))

    def encode(self, index: int, examples: list[ScoredExample]) -> bytes:
        """The bytes of a shard, in the order of `examples`; its number is in its metadata."""
        sink = pa.BufferOutputStream()
        numbered = self.schema.with_metadata({**self.schema.metadata, NUMBER: str(index)})
        with pa.ipc.new_stream(sink, numbered) as writer:
            for start in range(0, len(examples), ROWS_PER_BATCH):
                writer.write_batch(self._batch(examples[start : start + ROWS_PER_BATCH]))
        return bytes(sink.getvalue())

    def put(self, index: int, data: bytes) -> None:
        """Write the bytes of a complete shard under its name."""
        path = self.folder / shard_name(index)
        # The checksum first, so that every existing shard has one. The manifest holds it in the end.
        write_bytes(path.with_suffix(CHECKSUM), xxhash.xxh3_128_hexdigest(data).encode())
        write_bytes(path, data)

    def finish(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest over all shards in the folder and return it.

        extra  further records, such as timing; readers do not check them
        """
        shards: list[dict[str, Any]] = []
        for path in sorted(self.folder.glob("shard-*.arrow")):
            checksum = hash_file(path)
            if checksum != self._written(path):
                path.unlink()
                raise StoreError(
                    "store",
                    str(path),
                    "was damaged after it was written, and has been removed",
                    "run the same command again",
                )
            table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
            number = (table.schema.metadata or {}).get(NUMBER.encode())
            masked, tokens = (
                int(pa.compute.sum(pa.compute.list_value_length(table[name])).as_py() or 0)
                for name in ("masked", "input_ids")
            )
            shards.append(
                ({} if number is None else {"number": len(shards)})
                | {
                    "file": path.name,
                    "checksum": checksum,
                    "bytes": path.stat().st_size,
                    "examples": table.num_rows,
                    "masked": masked,
                    "tokens": tokens,
                }
            )
        manifest = {"format": FORMAT, "identity": self.identity, "shards": shards, "record": extra}
        write_json(self.folder / MANIFEST, manifest, sealed=True)
        for path in self.folder.glob(f"*{CHECKSUM}"):
            path.unlink()
        return manifest

    def _written(self, path: Path) -> str | None:
        """The checksum that a shard was written with; None if it is unknown."""
        beside, manifest = path.with_suffix(CHECKSUM), self.folder / MANIFEST
        if beside.is_file():
            return beside.read_text("utf-8", errors="replace")
        # The run was killed after the manifest was written.
        try:
            shards = Manifest.model_validate(read_record(manifest)).shards
        except ValidationError:
            return None
        return next((shard.checksum for shard in shards if shard.file == path.name), None)

    def _batch(self, examples: list[ScoredExample]) -> pa.RecordBatch:
        schema = self.schema
        masked = schema.field("masked").type.value_type

        def values(name: str) -> pa.Array:
            field = masked.field(name)
            parts = [
                getattr(example, {"position": "positions", "gold_logprob": "gold_logprobs"}.get(name, name))
                for example in examples
            ]
            flat = np.concatenate([part.reshape(-1) for part in parts])
            if pa.types.is_fixed_size_list(field.type):
                inner = pa.array(flat.astype(numpy_dtype(field.type.value_type)))
                return pa.FixedSizeListArray.from_arrays(inner, type=field.type)
            return pa.array(flat.astype(numpy_dtype(field.type)))

        def offsets(lengths: list[int]) -> pa.Array:
            return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))

        structs = pa.StructArray.from_arrays([values(field.name) for field in masked], fields=list(masked))
        ids_field = schema.field("input_ids").type
        flat_ids = np.concatenate([example.input_ids for example in examples])
        losses = [
            -float(example.gold_logprobs.mean()) if len(example.gold_logprobs) else 0.0
            for example in examples
        ]
        columns = [
            pa.array(np.array([example.example for example in examples], dtype=np.uint64)),
            pa.array(np.array(losses, dtype=np.float32)),
            pa.ListArray.from_arrays(
                offsets([len(example.input_ids) for example in examples]),
                pa.array(flat_ids.astype(numpy_dtype(ids_field.value_type))),
                type=ids_field,
            ),
            pa.ListArray.from_arrays(
                offsets([len(example.positions) for example in examples]),
                structs,
                type=schema.field("masked").type,
            ),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)
