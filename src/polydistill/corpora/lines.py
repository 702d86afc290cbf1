"""Lines of text files, by bytes: compressed or not, checked for UTF-8, never a whole file in memory."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from polydistill.errors import CorpusError

# A longer line is read in parts of this size: a file without line ends must not fill the memory.
MAX_LINE_BYTES = 1 << 20
# Among so many first lines, half that are not UTF-8 mean another encoding rather than a few damaged lines.
PROBE_LINES = 200


def read_lines(path: Path, dropped: Counter[str], *, field: str) -> Iterator[str]:
    """The lines of a file without their ends; lines that are not UTF-8 are counted in `dropped`.

    Raises CorpusError for a file that cannot be read or is in another encoding.
    """
    seen = bad = 0
    try:
        with _open(path) as handle:
            pending = b""
            while part := handle.readline(MAX_LINE_BYTES):
                raw, pending = pending + part, b""
                if not part.endswith(b"\n") and len(part) == MAX_LINE_BYTES:
                    # Cut behind a whole character; the rest goes on in the next part.
                    cut = _last_boundary(raw)
                    raw, pending = raw[:cut], raw[cut:]
                seen += 1
                if seen == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError:
                    bad += 1
                    dropped["not_utf8"] += 1
                    if bad >= 3 and bad * 2 > seen and seen <= PROBE_LINES:
                        raise _not_utf8(path, field) from None
                    continue
                yield line.rstrip("\r\n")
            if pending:
                yield pending.decode("utf-8", "replace")
    except (OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise CorpusError(
            field, str(path), f"cannot be read ({error})", "check that the file is whole and its ending says its compression"
        ) from error
    if seen and bad * 2 > seen:
        raise _not_utf8(path, field)


def _not_utf8(path: Path, field: str) -> CorpusError:
    return CorpusError(
        field, str(path), "most of its lines are not UTF-8", "convert it first, such as `iconv -f LATIN1 -t UTF-8`"
    )


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".xz":
        return lzma.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        return zstandard.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _last_boundary(raw: bytes) -> int:
    """Where the last whole UTF-8 character of `raw` ends."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte < 0x80:
            return len(raw)
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(raw) if back >= needed else len(raw) - back
    return len(raw)
