"""What the fuzz tests generate, and what they accept from a reader."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from polydistill.errors import UserError

FUZZ = int(os.environ.get("POLYDISTILL_FUZZ", "8"))


fuzzed = settings(max_examples=FUZZ, deadline=None, suppress_health_check=list(HealthCheck))


# Text that breaks readers: mixed scripts, bidi and zero-width marks, NUL, other line ends, emoji of several
# code points, combining marks without a base, characters outside the first plane, non-characters, and
# separators.
NASTY = [
    "",
    " ",
    "\t",
    "\r",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\u2028",
    "\x00",
    "\x1b[31m",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u202e",
    "\u2066",
    "\u0301",
    "a\u0301\u0316",
    "👩‍👩‍👧‍👦",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "한국어",
    "中文",
    "ไทย",
    "العربية",
    "עברית",
    "हिन्दी",
    "ẞß",
    "ﬁ",
    "İı",
    "𝔘𝔫𝔦",
    "\U0010ffff",
    "\ufffe",
    "!!!???",
    "...",
    "ab" * 700,
    "字" * 900,
    "-DOCSTART-",
    "# text",
    '"',
    "'",
    "\\",
    "{",
    "[",
    ":",
    "&a",
    "*a",
    "!!python/object:os.system",
    "../../x",
    "/etc/passwd",
    "<script>",
    "[MASK]",
    "[CLS]",
    "1e999",
    "NaN",
    "-0",
    "B-",
    "I-PER",
    "O",
    "_",
    "1-2",
    "1.1",
    "NOUN",
]


pieces = st.one_of(st.sampled_from(NASTY), st.text(max_size=12))


lines = st.lists(pieces, max_size=8).map("".join)


texts = st.lists(lines, max_size=30).map("\n".join)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    lines,
    st.sampled_from([10**30, -1, 0, float("inf")]),
)


values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(pieces, inner, max_size=3),
    max_leaves=6,
)


def surely_bytes(text: str) -> bytes:
    """UTF-8 where possible, and half surrogates as broken UTF-8."""
    return text.encode("utf-8", "surrogatepass")


raw = st.one_of(texts.map(surely_bytes), st.binary(max_size=400), texts.map(lambda t: t.encode("utf-16")))


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def said() -> Iterator[None]:
    """One readable message says what the user can fix; everything else is a bug of ours."""
    refused = []
    try:
        yield
    except UserError as error:
        refused.append(error)
    assert all(error.remedy and "Traceback" not in str(error) for error in refused), refused


def outcome(read: Callable[[], object]) -> object:
    """A reader's result, or the UserError that it raises, with a remedy."""
    try:
        return read()
    except UserError as error:
        refused = error
    assert refused.remedy
    assert "Traceback" not in str(refused)
    return refused


def mutated(draw: st.DrawFn, value: object, depth: int = 0) -> object:
    """A JSON-able value with one place replaced, removed or repeated."""
    if not isinstance(value, dict | list) or not value or (depth and draw(st.integers(0, 3)) == 0):
        return draw(values)
    if isinstance(value, list):
        place = draw(st.integers(0, len(value) - 1))
        changed = list(value)
        changed[place] = mutated(draw, value[place], depth + 1)
        return changed if draw(st.booleans()) else changed + changed[place : place + 1]
    key = draw(st.sampled_from(sorted(value, key=str)))
    if draw(st.integers(0, 5)) == 0:
        return {name: entry for name, entry in value.items() if name != key}
    if draw(st.integers(0, 5)) == 0:
        return value | {draw(pieces): value[key]}
    return value | {key: mutated(draw, value[key], depth + 1)}
