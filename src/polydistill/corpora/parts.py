"""Parts of a text: ranges that any process can clean alone, cut by the text and not by who reads it.

Large files of lines are cut as bytes, at the border of a document: reading them costs one process little.
What has to be read in order (Parquet, data sets, windows of lines, capped texts) is passed on as documents.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

from polydistill.config.shared import Source
from polydistill.corpora.documents import Document, documents_of, starts_block
from polydistill.corpora.lines import (
    MAX_JSON_BYTES,
    MAX_LINE_BYTES,
    PROBE_LINES,
    Tally,
    decode_line,
    explain_damage,
    last_boundary,
    lines_in,
    not_utf8,
    open_text,
)
from polydistill.corpora.sources import list_files, source_documents, text_kind

# About one second of a core's work. Examples of two parts are never packed together.
PART_BYTES = 1 << 20
# Where a document has no end, its file is cut anyway.
MAX_PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class Piece:
    """A range of one file, or some documents of one source.

    split   the split of all its documents; None: their content decides
    field   where the recipe has its source, for messages
    origin  the file or data set; place adds its lines
    data    whole lines of a text file, or documents
    """

    source: Source
    split: int | None
    field: str
    origin: str
    place: str
    data: bytes | list[Document]

    @property
    def size(self) -> int:
        """Bytes of the file, or characters of the documents."""
        if isinstance(self.data, bytes):
            return len(self.data)
        return sum(len(line) for document in self.data for line in document.lines)

    def documents(self, block_lines: int, dropped: Counter[str], tally: Tally) -> Iterator[Document]:
        """Its documents; `dropped` and `tally` count as `read_documents` does."""
        if not isinstance(self.data, bytes):
            return iter(self.data)
        jsonl = text_kind(Path(self.origin)) == ".jsonl"
        return documents_of(
            lines_in(io.BytesIO(self.data), dropped, tally, whole=jsonl),
            self.source,
            self.origin,
            jsonl=jsonl,
            block_lines=block_lines,
            dropped=dropped,
            tally=tally,
            field=self.field,
        )


@dataclass(frozen=True)
class Part:
    """Pieces that one process cleans and packs."""

    pieces: list[Piece]

    @property
    def place(self) -> str:
        """Its files and lines, in words."""
        first, last = self.pieces[0].place, self.pieces[-1].place
        return first if len(self.pieces) == 1 else f"{first} to {last}"


@dataclass(frozen=True)
class Text:
    """Sources of one split: `split` is None where documents decide by their content."""

    sources: Sequence[Source]
    field: str
    split: int | None = None


@dataclass
class Reading:
    """Cuts texts into parts, in order.

    dropped  counts what was dropped before a part was made
    fields   file → its field in the recipe
    """

    block_lines: int
    dropped: Counter[str] = field(default_factory=Counter)
    fields: dict[str, str] = field(default_factory=dict)

    def parts(self, texts: Sequence[Text]) -> Iterator[Part]:
        """The parts of texts. Raises CorpusError for a source that is missing or cannot be read."""
        held: list[Piece] = []
        size = 0
        for piece in self._pieces(texts):
            held.append(piece)
            size += piece.size
            if size >= PART_BYTES:
                yield Part(held)
                held, size = [], 0
        if held:
            yield Part(held)

    def _pieces(self, texts: Sequence[Text]) -> Iterator[Piece]:
        for text in texts:
            for index, source in enumerate(text.sources):
                place = f"{text.field}[{index}]"
                paths = list_files(source, place) if source.path is not None else []
                capped = source.max_characters or source.num_lines or source.first_line > 1
                if not paths or capped or any(text_kind(path) == ".parquet" for path in paths):
                    yield from self._read(source, text.split, place)
                    continue
                for path in paths:
                    self.fields[str(path)] = place
                    for where, data in self._cut(path, source, place):
                        yield Piece(source, text.split, place, str(path), where, data)

    def _read(self, source: Source, split: int | None, place: str) -> Iterator[Piece]:
        """A source's documents, in pieces of a part's size and one origin."""
        held: list[Document] = []
        size = seen = 0

        def piece() -> Piece:
            first = seen - len(held) + 1
            where = f"{held[0].origin}, documents {first:,} to {seen:,} of the source"
            return Piece(source, split, place, held[0].origin, where, held)

        for document in source_documents(source, self.dropped, field=place, block_lines=self.block_lines):
            if held and (size >= PART_BYTES or document.origin != held[0].origin):
                yield piece()
                held, size = [], 0
            held.append(document)
            seen += 1
            size += sum(map(len, document.lines))
        if held:
            yield piece()

    def _cut(self, path: Path, source: Source, place: str) -> Iterator[tuple[str, bytes]]:
        """(its lines in words, bytes) of the ranges of a file of lines."""
        jsonl = text_kind(path) == ".jsonl"
        ends = _ends(source, self.block_lines, jsonl=jsonl)
        line, rest = 1, b""
        with explain_damage(path, place), open_text(path) as handle:
            while True:
                data, rest, ended = _range(handle, rest, ends, self.dropped, jsonl=jsonl)
                if line == 1:
                    data = data.removeprefix(b"\xef\xbb\xbf")
                    _probe(data, path, place, jsonl=jsonl)
                if data:
                    count = data.count(b"\n") + (not data.endswith(b"\n"))
                    yield f"{path}, lines {line:,} to {line + count - 1:,}", data
                    line += count
                if ended:
                    return


# A line → (whether a range may end before it, whether it may end after it).
_Ends = Callable[[bytes], tuple[bool, bool]]


def _ends(source: Source, block_lines: int, *, jsonl: bool) -> _Ends:
    """Where documents end in a file of lines."""
    if jsonl or source.documents == "lines":
        return lambda line: (False, True)
    if source.documents == "blank_lines":
        return lambda line: (False, not line.strip())
    return lambda line: (starts_block((decode_line(line) or "").strip(), block_lines), False)


def _range(
    handle: IO[bytes], begun: bytes, ends: _Ends, dropped: Counter[str], *, jsonl: bool
) -> tuple[bytes, bytes, bool]:
    """(the lines of one range, the begin of the next, whether the file has ended)."""
    read = begun + handle.read(PART_BYTES)
    border = read.rfind(b"\n") + 1
    data, size, line = [read[:border]], border, read[border:]
    while part := handle.readline(MAX_LINE_BYTES):
        line += part
        if not part.endswith(b"\n"):
            if jsonl and len(line) > MAX_JSON_BYTES:
                dropped["too_long"] += 1
                _skip_line(handle)
                return b"".join(data), b"", False
            if not jsonl and len(line) > MAX_PIECE_BYTES:
                cut = last_boundary(line)
                return b"".join([*data, line[:cut]]), line[cut:], False
            continue
        before, after = ends(line)
        if before and size:
            return b"".join(data), line, False
        data.append(line)
        size += len(line)
        if after or size > MAX_PIECE_BYTES:
            return b"".join(data), b"", False
        line = b""
    return b"".join([*data, line]), b"", True


def _skip_line(handle: IO[bytes]) -> None:
    while (part := handle.readline(MAX_LINE_BYTES)) and not part.endswith(b"\n"):
        pass


def _probe(data: bytes, path: Path, place: str, *, jsonl: bool) -> None:
    """Raise CorpusError if most of a file's first lines are in another encoding."""
    lines = lines_in(io.BytesIO(data), Counter(), Tally(), whole=jsonl, refuse=lambda: not_utf8(path, place))
    for _ in islice(lines, PROBE_LINES):
        pass
