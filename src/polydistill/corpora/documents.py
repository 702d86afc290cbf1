"""Documents of lines: rows, paragraphs, blocks with content-defined borders, JSON objects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from polydistill.config.shared import Source
from polydistill.corpora.lines import PROBE_LINES, Tally
from polydistill.disk import hash_text
from polydistill.errors import CorpusError

# A longer block or paragraph is passed on in parts, so that it does not fill the memory.
MAX_BLOCKS = 16
MAX_CHARACTERS = 1 << 22


class Document(NamedTuple):
    """A document, or a block of lines of a file without documents.

    key     a hash of its content, which decides whether it is held out
    lines   raw, in order
    origin  the file or data set
    joined  whether it continues the previous document of the same origin
    """

    key: int
    lines: list[str]
    origin: str
    joined: bool


def documents_of(
    lines: Iterator[str],
    source: Source,
    origin: str,
    *,
    jsonl: bool,
    block_lines: int,
    dropped: Counter[str],
    tally: Tally,
    field: str,
) -> Iterator[Document]:
    """The documents of a file's lines.

    jsonl    whether each line is a JSON object
    dropped  counts by reason what could not be read
    field    where the recipe has the source, for messages
    """
    if jsonl:
        yield from rows(_objects(lines, Path(origin), source, dropped, tally, field), origin)
    elif source.documents == "lines":
        yield from rows(lines, origin)
    elif source.documents == "blank_lines":
        yield from rows(_paragraphs(lines), origin)
    else:
        yield from _blocks(lines, origin, block_lines)


def rows(texts: Iterator[str], origin: str) -> Iterator[Document]:
    """Each text as a document."""
    for text in texts:
        yield Document(hash_text(text), text.splitlines(), origin, False)


def starts_block(line: str, block_lines: int) -> bool:
    """Whether a line without blanks at its ends starts a block, see `_blocks`."""
    # All blank lines have one hash: they neither start a block nor determine its key.
    return bool(line) and hash_text(line) % block_lines == 0


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for line in lines:
        blank = not line.strip()
        if held and (blank or size > MAX_CHARACTERS):
            yield "\n".join(held)
            held, size = [], 0
        if not blank:
            held.append(line)
            size += len(line)
    if held:
        yield "\n".join(held)


def _blocks(lines: Iterator[str], origin: str, block_lines: int) -> Iterator[Document]:
    """Blocks with content-defined borders: a line whose hash is divisible by `block_lines` starts a new one.

    A block's key is its first line's hash. So lines that are added anywhere, also within a block, leave the
    other blocks unchanged; blocks of fixed length would all shift. All parts of a long block have its key,
    because the places where it is cut would shift too.
    """
    held: list[str] = []
    key, size, first = None, 0, True
    for line in lines:
        stripped = line.strip()
        border = starts_block(stripped, block_lines)
        if held and (border or len(held) >= MAX_BLOCKS * block_lines or size > MAX_CHARACTERS):
            yield Document(key or 0, held, origin, not first)
            held, size, first = [], 0, False
        if border or (key is None and stripped):
            key = hash_text(stripped)
        held.append(line)
        size += len(line)
    if held:
        yield Document(key or 0, held, origin, not first)


def _objects(
    lines: Iterator[str], path: Path, source: Source, dropped: Counter[str], tally: Tally, field: str
) -> Iterator[str]:
    """The texts of lines with a JSON object each."""
    for line in lines:
        if not line.strip():
            continue
        tally.objects += 1
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            tally.bad_objects += 1
            dropped["not_json"] += 1
            if tally.bad_objects * 2 > PROBE_LINES and tally.objects <= PROBE_LINES:
                raise not_json(path, field) from None
            continue
        if not isinstance(row, dict) or source.field not in row:
            have = sorted(row) if isinstance(row, dict) else [f"a {type(row).__name__} in place of an object"]
            raise no_field(source, path, have, field)
        if isinstance(row[source.field], str):
            yield row[source.field]
        else:
            dropped["not_text"] += 1


def not_json(path: Path, field: str) -> CorpusError:
    """The error for a file whose lines are mostly not JSON."""
    return CorpusError(
        field,
        str(path),
        "most of its lines are not JSON",
        "write one JSON object per line, or rename it to end in .txt",
    )


def no_field(source: Source, where: Path | str, have: list[str], field: str) -> CorpusError:
    """The error for rows without the text's field; `have` are the fields that are there."""
    return CorpusError(
        f"{field}.field",
        source.field,
        f"{where} has no such field (it has {', '.join(have)})",
        "name the text's field",
    )
