"""Lines of text files: compressed or not, checked for UTF-8, streamed."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

from polydistill.corpora.encodings import SAMPLE_BYTES, conversion, likely_encoding
from polydistill.disk import hash_file
from polydistill.errors import CorpusError

# A longer line is read in parts of this size: a file without line ends must not fill the memory.
MAX_LINE_BYTES = 1 << 20
# A line of JSON cannot be read in parts: a longer one is skipped.
MAX_JSON_BYTES = 1 << 26
# A task's examples are all in memory: a file with more text than this is refused.
MAX_TASK_BYTES = 1 << 29
# So is a larger file with this ratio of text to size on disk: labelled text compresses to a tenth or a
# twentieth.
BOMB_BYTES, BOMB_RATIO = 1 << 23, 100
# If more than half of this many first lines are not UTF-8, the file has another encoding, not a few damaged
# lines.
PROBE_LINES = 200


@dataclass
class Tally:
    """Of a file: lines, lines that are not UTF-8 text; objects of JSONL, lines that are none."""

    lines: int = 0
    bad: int = 0
    objects: int = 0
    bad_objects: int = 0

    def add(self, other: Tally) -> None:
        """Add the counts of another range of the file."""
        self.lines += other.lines
        self.bad += other.bad
        self.objects += other.objects
        self.bad_objects += other.bad_objects


def read_lines(
    path: Path,
    dropped: Counter[str],
    *,
    field: str,
    whole: bool = False,
    most: int | None = None,
    tally: Tally | None = None,
) -> Iterator[str]:
    """The lines of a file without their ends; lines that are not UTF-8 are counted in `dropped`.

    whole  skip a line that is too long and count it as `too_long`, rather than read it in parts
    most   maximum bytes of text in the file; a line that is too long is then an error
    tally  counts the lines
    Raises CorpusError for a file that cannot be read, is in another encoding, or is larger than `most`.
    """
    size = 0

    def check(part: bytes, limit: int) -> None:
        nonlocal size
        size += len(part)
        if most is not None:
            _check_size(path, field, size, most, unended=len(part) == limit and not part.endswith(b"\n"))

    tally = Tally() if tally is None else tally
    with explain_damage(path, field), open_text(path) as handle:
        yield from lines_in(
            handle, dropped, tally, whole=whole, check=check, refuse=lambda: not_utf8(path, field)
        )
    if tally.lines and tally.bad * 2 > tally.lines:
        raise not_utf8(path, field)


def lines_in(
    handle: IO[bytes],
    dropped: Counter[str],
    tally: Tally,
    *,
    whole: bool = False,
    check: Callable[[bytes, int], None] = lambda part, limit: None,
    refuse: Callable[[], CorpusError] | None = None,
) -> Iterator[str]:
    """The lines of a file or of a range of it, see `read_lines`.

    check   called with each part of a line that is read, and the largest size of one
    refuse  makes the error if most of the first PROBE_LINES are not UTF-8; None for a later range of a file
    """
    limit = MAX_JSON_BYTES if whole else MAX_LINE_BYTES
    first = refuse is not None
    pending = b""
    while part := handle.readline(limit):
        check(part, limit)
        raw, pending = pending + part, b""
        if not part.endswith(b"\n") and len(part) == limit:
            if whole:
                dropped["too_long"] += 1
                while (part := handle.readline(MAX_LINE_BYTES)) and not part.endswith(b"\n"):
                    pass
                continue
            # Cut after a whole character; the rest goes to the next part.
            cut = last_boundary(raw)
            raw, pending = raw[:cut], raw[cut:]
        tally.lines += 1
        if first:
            raw, first = raw.removeprefix(b"\xef\xbb\xbf"), False
        line = decode_line(raw)
        # UTF-16 is often valid UTF-8, with many NULs.
        tally.bad += line is None or "\0" in line
        if refuse is not None and tally.bad * 2 > PROBE_LINES and tally.lines <= PROBE_LINES:
            raise refuse()
        if line is None:
            dropped["not_utf8"] += 1
        else:
            yield line.rstrip("\r\n")
    if pending:
        yield pending.decode("utf-8", "replace")


@contextmanager
def explain_damage(path: Path, field: str) -> Iterator[None]:
    """Raise what reading a damaged or unreadable file raises as a CorpusError."""
    try:
        with explain_unreadable(path, field):
            yield
    except (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
        raise CorpusError(
            field,
            str(path),
            f"cannot be read ({error})",
            "check that the file is whole and that its ending matches its compression",
        ) from error


def _check_size(path: Path, field: str, size: int, most: int, *, unended: bool) -> None:
    """Raise CorpusError for too much text, an implausible compression ratio, or a line without an end."""
    bomb = size > BOMB_BYTES and size > BOMB_RATIO * path.stat().st_size
    if size <= most and not bomb and not unended:
        return
    if unended:
        reason = f"has a line of more than {MAX_JSON_BYTES / 2**20:,.1f} MiB"
    else:
        reason = f"holds more than {size / 2**20:,.1f} MiB of text"
    if bomb:
        reason += f", more than {BOMB_RATIO} times its size on the disk"
    raise CorpusError(
        field, str(path), reason, "check that it is the right file; if it is, decompress or shorten it"
    )


def not_utf8(path: Path, field: str) -> CorpusError:
    """The error for a file that is not UTF-8, with its likely encoding."""
    with open_text(path) as handle:
        sample = handle.read(SAMPLE_BYTES)
    seeming, remedy = conversion(sample)
    if likely_encoding(sample) is None and _is_binary(sample):
        return CorpusError(
            field,
            str(path),
            "is no text: many of its bytes are control characters",
            "name a text file; JSONL, Parquet, .gz, .xz and .zst need these endings",
        )
    return CorpusError(field, str(path), f"most of its lines are not UTF-8: {seeming}", remedy)


def _is_binary(sample: bytes) -> bool:
    """Whether no encoding gives text: one byte in twenty is a control character other than NUL."""
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" and byte != 0 for byte in sample)
    return controls * 20 > len(sample)


@contextmanager
def explain_unreadable(path: Path, field: str) -> Iterator[None]:
    """Turn 'permission denied' for a text into a CorpusError: elsewhere it means an unwritable output."""
    try:
        yield
    except PermissionError as error:
        raise CorpusError(
            field,
            str(path),
            f"cannot be read ({error.strerror or 'no permission'})",
            "give this user permission to read it (`ls -l` shows who has it) and to enter its folders, or "
            "name another text",
        ) from error


def is_text_file(path: Path, field: str) -> bool:
    """Whether a file exists; CorpusError if this user may not enter its folder."""
    with explain_unreadable(path, field):
        return path.is_file()


def hash_text_file(path: Path, field: str) -> str:
    """`hash_file` of a text; CorpusError if this user may not read it."""
    with explain_unreadable(path, field):
        return hash_file(path)


def open_text(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed by its suffix (.gz, .xz, .zst)."""
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    if path.suffix == ".zst":
        # zstandard's reader accepts a truncated file as a whole one; Arrow's does not.
        return cast(
            IO[bytes], io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), 1 << 18)
        )
    return path.open("rb")


def decode_line(raw: bytes) -> str | None:
    """A line's text; None if it is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def last_boundary(raw: bytes) -> int:
    """Where the last whole UTF-8 character of `raw` ends."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte < 0x80:
            return len(raw)
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(raw) if back >= needed else len(raw) - back
    return len(raw)
