"""The store's format: one Arrow row per example, one struct per masked position.

Columns of a shard:

    example    uint64                         the example's id in `corpora/<language>`
    loss       float32                        the teacher's mean loss in nats over the masked tokens
    input_ids  list<uint16 | uint32>          the teacher's input with masks, in the teacher's ids
    masked     list<struct>                   the masked positions, ascending
      position      uint8 | uint16
      gold          uint16 | uint32           the text's token
      gold_logprob  float16                   its log-probability in nats under the teacher's full softmax
      top_ids       fixed list of k ids       most probable first (or drawn)
      top_logprobs  fixed list of k float16   under the full softmax: the tail's mass is 1 - sum(p)

Ids have the smallest type for the vocabulary, positions the smallest type for the length. Language and
teacher are constant in a store: the manifest and the shard's metadata hold them. With `sampling: random` a
drawn piece's log-probability is log(times drawn / k), and empty slots are -inf; with `hybrid` it is log(times
drawn / number of draws) and the log of what the exact pieces leave.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

FORMAT = 1
MANIFEST = "manifest.json"
# In a shard's metadata: its index in the store, so that no shard can replace another.
NUMBER = "shard"


def shard_name(index: int) -> str:
    """The file name of a shard."""
    return f"shard-{index:05d}.arrow"


class Shard(BaseModel):
    """A shard's entry in a manifest."""

    model_config = ConfigDict(frozen=True, strict=True)

    # A file name, not a path: a manifest must not point elsewhere.
    file: str = Field(pattern=r"^shard-[0-9]+\.arrow$")
    checksum: str
    bytes: int = Field(ge=0)
    examples: int = Field(ge=0)
    masked: int = Field(ge=0)
    tokens: int = Field(ge=0)
    # Also in the shard's metadata; shards of earlier versions have none.
    number: int | None = Field(default=None, ge=0)


class Manifest(BaseModel):
    """The parts of manifest.json that readers use."""

    model_config = ConfigDict(frozen=True, strict=True)

    identity: dict[str, Any]
    # No store is empty: without text the run ends before.
    shards: list[Shard] = Field(min_length=1)

    @field_validator("shards")
    @classmethod
    def _in_order(cls, shards: list[Shard]) -> list[Shard]:
        for index, shard in enumerate(shards):
            if shard.file != shard_name(index) or shard.number not in (None, index):
                raise ValueError(f"{shard_name(index)} is not at its index")
        return shards

    @field_validator("identity")
    @classmethod
    def _has_top_k(cls, identity: dict[str, Any]) -> dict[str, Any]:
        if type(identity.get("top_k")) is not int or identity["top_k"] < 1:
            raise ValueError("identity.top_k is not a positive whole number")
        return identity


def id_type(vocabulary_size: int) -> pa.DataType:
    """The smallest unsigned type for ids below `vocabulary_size`."""
    return pa.uint16() if vocabulary_size <= 1 << 16 else pa.uint32()


def position_type(max_length: int) -> pa.DataType:
    """The smallest unsigned type for positions below `max_length`."""
    return pa.uint8() if max_length <= 1 << 8 else pa.uint16()


def shard_schema(vocabulary_size: int, max_length: int, top_k: int, metadata: dict[str, str]) -> pa.Schema:
    """The Arrow schema of a shard."""
    ids = id_type(vocabulary_size)
    masked = pa.struct(
        [
            pa.field("position", position_type(max_length), nullable=False),
            pa.field("gold", ids, nullable=False),
            pa.field("gold_logprob", pa.float16(), nullable=False),
            pa.field("top_ids", pa.list_(pa.field("item", ids, nullable=False), top_k), nullable=False),
            pa.field(
                "top_logprobs",
                pa.list_(pa.field("item", pa.float16(), nullable=False), top_k),
                nullable=False,
            ),
        ]
    )
    return pa.schema(
        [
            pa.field("example", pa.uint64(), nullable=False),
            pa.field("loss", pa.float32(), nullable=False),
            pa.field("input_ids", pa.list_(pa.field("item", ids, nullable=False)), nullable=False),
            pa.field("masked", pa.list_(pa.field("item", masked, nullable=False)), nullable=False),
        ],
        metadata=metadata,
    )


def store_bytes(
    tokens: float, *, vocabulary_size: int, max_length: int, top_k: int, masked_share: float
) -> float:
    """Estimated bytes of a store of `tokens` tokens.

    masked_share  share of the tokens that are masked
    """
    id_bytes = numpy_dtype(id_type(vocabulary_size)).itemsize
    position = numpy_dtype(position_type(max_length)).itemsize + id_bytes + 2 + top_k * (id_bytes + 2)
    example = 8 + 4 + 4 + 4
    return tokens * (masked_share * position + id_bytes) + tokens / max_length * example


def numpy_dtype(arrow_type: pa.DataType) -> np.dtype[Any]:
    """The numpy type of an Arrow number type."""
    dtype: np.dtype[Any] = np.dtype(arrow_type.to_pandas_dtype())
    return dtype
