"""What is done with one part, in any process: its lines are cleaned, then those that are kept are packed.

Results are bytes of Arrow streams, with counts in their schemas; `part_files` writes them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polydistill.corpora.cleaning import clean_line
from polydistill.corpora.counting import TokenCounter
from polydistill.corpora.dedup import HELD_OUT, TRAIN
from polydistill.corpora.examples import SCHEMA
from polydistill.corpora.lines import Tally
from polydistill.corpora.near import band_hashes, bands_for
from polydistill.corpora.packing import pack
from polydistill.corpora.parts import Part
from polydistill.disk import hash_text

# `bands` are those of a document (see `near`), at its first line.
LINES = pa.schema(
    [
        ("text", pa.string()),
        ("split", pa.uint8()),
        ("run", pa.uint32()),
        ("hash", pa.uint64()),
        ("bands", pa.list_(pa.uint64())),
    ]
)
EXAMPLES = SCHEMA.append(pa.field("split", pa.uint8()))
_COUNTS = b"counts"


@dataclass
class Counted:
    """Counts of reading and cleaning: lines dropped by reason, lines changed, and the text of each origin.

    tallies  of each file that was read as lines
    places   the smallest and the largest place (`place_of`) of a document with text, texts that are wholly
             for evaluation left out
    part     its place in words, see `Part.place`
    """

    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    origins: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    places: tuple[float, float] = (1.0, 0.0)
    part: str = ""

    def add(self, other: Counted) -> None:
        """Add the counts of another part."""
        self.dropped += other.dropped
        self.changed += other.changed
        for origin, counts in other.origins.items():
            self.origins[origin].update(counts)
        for origin, tally in other.tallies.items():
            self.tallies[origin].add(tally)
        lows, highs = zip(self.places, other.places, strict=True)
        self.places = (min(lows), max(highs))

    def metadata(self) -> dict[bytes, bytes]:
        """The counts as metadata of a schema."""
        values = vars(self) | {"tallies": {origin: vars(tally) for origin, tally in self.tallies.items()}}
        return {_COUNTS: json.dumps(values, ensure_ascii=False).encode()}

    @classmethod
    def of(cls, schema: pa.Schema) -> Counted:
        """The counts that a part's schema holds."""
        found = json.loads(schema.metadata[_COUNTS])
        return cls(
            Counter(found["dropped"]),
            Counter(found["changed"]),
            {origin: Counter(counts) for origin, counts in found["origins"].items()},
            {origin: Tally(**counts) for origin, counts in found["tallies"].items()},
            tuple(found["places"]),
            found["part"],
        )


def place_of(key: int) -> float:
    """A document's place in [0, 1), by its content hash alone: those below a share are held out."""
    # The multiplication comes first, because block keys share their remainders by construction.
    return float((key * 0x9E3779B97F4A7C15 >> 11) % (1 << 53)) / (1 << 53)


@dataclass(frozen=True)
class Cleaning:
    """How lines are cleaned and split, see `config.shared.Corpora`."""

    block_lines: int
    min_characters: int
    held_out_share: float
    near_repeats: float | None = None


def clean_part(cleaning: Cleaning, part: Part) -> bytes:
    """The cleaned lines of a part, their splits, hashes and runs, and its `Counted`.

    Consecutive documents of one origin and split have the same run number: they may be packed together.
    """
    counted = Counted(part=part.place)
    texts: list[str] = []
    splits: list[int] = []
    runs: list[int] = []
    starts: list[int] = []
    for lines, split, run in _cleaned(cleaning, part, counted):
        starts.append(len(texts))
        texts += lines
        splits += [split] * len(lines)
        runs += [run] * len(lines)
    bands: list[npt.NDArray[np.uint64] | None] = [None] * len(texts)
    if cleaning.near_repeats is not None:
        shape = bands_for(cleaning.near_repeats)
        for start, end in pairwise([*starts, len(texts)]):
            bands[start] = band_hashes(texts[start:end], *shape)
    hashes = np.array([hash_text(text) for text in texts], dtype=np.uint64)
    columns = [
        pa.array(texts, pa.string()),
        pa.array(splits, pa.uint8()),
        pa.array(runs, pa.uint32()),
        pa.array(hashes, pa.uint64()),
        pa.array(bands, pa.list_(pa.uint64())),
    ]
    return _stream(columns, LINES.with_metadata(counted.metadata()))


def _cleaned(cleaning: Cleaning, part: Part, counted: Counted) -> Iterator[tuple[list[str], int, int]]:
    """(cleaned lines, split, run) of each document with text."""
    run = 0
    last: tuple[str, int] | None = None
    for piece in part.pieces:
        documents = piece.documents(cleaning.block_lines, counted.dropped, counted.tallies[piece.origin])
        for document in documents:
            place = place_of(document.key)
            decided = HELD_OUT if place < cleaning.held_out_share else TRAIN
            split = decided if piece.split is None else piece.split
            if not (document.joined and last == (document.origin, split)):
                run += 1
            last = (document.origin, split)
            origin = counted.origins[document.origin]
            origin["documents"] += 1
            kept = []
            for line in document.lines:
                cleaned = clean_line(
                    line,
                    min_characters=cleaning.min_characters,
                    dropped=counted.dropped,
                    changed=counted.changed,
                )
                if cleaned is not None:
                    kept.append(cleaned)
            if kept:
                if piece.split is None:
                    counted.places = (min(place, counted.places[0]), max(place, counted.places[1]))
                origin["lines"] += len(kept)
                origin["characters"] += sum(map(len, kept))
                yield kept, split, run


@dataclass(frozen=True)
class Packing:
    """How lines become examples, see `packing.pack`."""

    count_tokens: Callable[[list[str]], list[int]]
    max_tokens: int


def pack_part(packing: Packing, lines: bytes | Path, keep: bytes) -> bytes:
    """The examples of a part's lines, split by split, in order.

    lines  of `clean_part`, or the file that holds them
    keep   a byte for each line: whether it is kept
    """
    table = read_stream(lines.read_bytes() if isinstance(lines, Path) else lines)
    kept = table.filter(pa.array(np.frombuffer(keep, dtype=bool)))
    counter = packing.count_tokens
    by_words = units = None
    if isinstance(counter, TokenCounter):
        by_words, units = (None, counter) if counter.exact_by_words else (counter.by_words, None)
    ids: list[int] = []
    texts: list[str] = []
    sizes: list[int] = []
    splits: list[int] = []
    for split in sorted(set(kept["split"].to_pylist())):
        of_split = kept.filter(pc.equal(kept["split"], pa.scalar(split, pa.uint8())))
        pairs = zip(of_split["text"].to_pylist(), of_split["run"].to_pylist(), strict=True)
        packed = pack(pairs, counter, packing.max_tokens, estimate=by_words, units=units)
        for text, tokens in packed:
            ids.append(hash_text(text))
            texts.append(text)
            sizes.append(tokens)
            splits.append(split)
    columns = zip((ids, texts, sizes, splits), EXAMPLES, strict=True)
    return _stream([pa.array(column, kind.type) for column, kind in columns], EXAMPLES)


def read_stream(data: bytes | pa.Buffer) -> pa.Table:
    """The table of an Arrow stream."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def _stream(columns: Sequence[pa.Array[Any]], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(list(columns), schema=schema))
    return bytes(sink.getvalue())
