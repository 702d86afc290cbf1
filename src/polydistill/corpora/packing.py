"""Examples: consecutive lines packed until a sequence is nearly full."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, pairwise
from math import ceil
from typing import NamedTuple, Protocol

CountTokens = Callable[[list[str]], list[int]]


class CountUnits(Protocol):
    """Counts of texts whose tokens are those of their units (words, or Chinese characters), in order."""

    @property
    def one_tokenizer(self) -> bool:
        """Whether counts add up: with several tokenizers, the sum of the largest counts may be too large."""
        ...

    def __call__(self, texts: list[str]) -> list[int]:
        """[n] tokens of texts."""
        ...

    def units(self, text: str) -> Units:
        """The units of a text."""
        ...


class Units(NamedTuple):
    """Where a text can be cut without changing its tokens. Lists: a line has too few units for arrays to pay.

    starts, ends  [U] characters
    totals        [B][U + 1] tokens before each unit, by each tokenizer
    """

    starts: list[int]
    ends: list[int]
    totals: list[list[int]]

    def tokens(self, first: int, last: int) -> int:
        """Tokens of units first to last - 1, by the tokenizer that makes the most of them."""
        return max(total[last] - total[first] for total in self.totals)

    def fitting(self, first: int, room: int) -> int:
        """The end of the units from `first` on that have at most `room` tokens."""
        return min(bisect_right(total, total[first] + room) - 1 for total in self.totals)

    def largest(self) -> int:
        """Tokens of the unit that has the most."""
        return max(after - before for total in self.totals for before, after in pairwise(total))

    def border(self, first: int, last: int) -> int:
        """Where to cut, at most at `last`: at a blank in the second half if any, else at `last`."""
        half = (self.starts[first] + self.ends[last - 1]) // 2
        for unit in range(last, first, -1):
            if self.starts[unit] < half:
                break
            if self.starts[unit] > self.ends[unit - 1]:
                return unit
        return last


# Part of the identity of a corpus. 2: long lines are cut within a window. 3: no example crosses the border of
# two parts, and examples are planned by the counts of words.
PACKING_VERSION = 3
# A longer line is cut within windows of this many characters, or this many per token of an example. Each cut
# counts the tokens of the rest, so a cut that saw the whole line would make the time quadratic.
WINDOW_CHARACTERS, WINDOW_PER_TOKEN = 1024, 8

_CHUNK = 1000
_JOINERS = "\u200c\u200d"
_VERIFIED = 256
_PROBED_PAIRS = 64
# An estimate that is further away than this share plans examples badly.
_CLOSE = 0.02


def pack(
    lines: Iterable[tuple[str, int]],
    count_tokens: CountTokens,
    max_tokens: int,
    *,
    estimate: CountTokens | None = None,
    units: CountUnits | None = None,
) -> Iterator[tuple[str, int]]:
    """(text, number of tokens) of examples, in order; no example has more than `max_tokens` tokens.

    lines         (text, run): only consecutive lines of one run share an example
    count_tokens  for each text, its tokens by the tokenizer that makes the most of it
    estimate      a faster `count_tokens` to plan examples by, used if it is close on the first lines
    units         `count_tokens`, if a text's tokens are those of its units: lines are cut by these
    Lines are joined by a line end. A line that does not fit into the rest of an example is cut at a blank (if
    there is none, between two characters) and continues in the next one.
    """
    lines = iter(lines)
    if estimate is not None:
        first = list(islice(lines, _PROBED_PAIRS))
        lines = chain(first, lines)
        texts = [text[:WINDOW_CHARACTERS] for text, _ in first]
        exact = sum(count_tokens(texts))
        if abs(sum(estimate(texts)) - exact) > _CLOSE * exact:
            estimate = None
    # The plan adds up the counts of lines, but a joined text may have more tokens: byte-level tokenizers have
    # one for the line end. So every example is counted again as a whole.
    plan = _Plan(units or estimate or count_tokens, units, max_tokens)
    planned = plan.examples(lines)
    if units is not None and units.one_tokenizer:
        for parts, count in planned:
            yield "\n".join(parts), count
        return
    while batch := list(islice(planned, _VERIFIED)):
        counts = count_tokens(["\n".join(parts) for parts, _ in batch])
        for (parts, _), count in zip(batch, counts, strict=True):
            yield from _fitting(parts, count, count_tokens, max_tokens)


class _Plan:
    """The parts of each example, whose counts add up to at most `max_tokens`."""

    def __init__(self, count_tokens: CountTokens, units: CountUnits | None, max_tokens: int) -> None:
        self.count_tokens, self.units, self.max_tokens = count_tokens, units, max_tokens
        # A shorter piece of a line is worth less than the padding that it saves.
        self.least = max(4, max_tokens // 8)
        self.window = max(WINDOW_CHARACTERS, WINDOW_PER_TOKEN * max_tokens)
        self.held: list[str] = []
        self.tokens = 0

    def examples(self, lines: Iterable[tuple[str, int]]) -> Iterator[tuple[list[str], int]]:
        """(the parts of an example, the sum of their counts), in order."""
        current = -1
        for line, run, size, seam in self._counted(lines):
            if self.held and run != current:
                yield self._ended()
            current = run
            if self.units is not None and size > self.max_tokens - self.tokens:
                units = self.units.units(line)
                # What has too many tokens for an example is cut between its characters.
                if units.largest() <= self.max_tokens:
                    yield from self._by_units(line, units)
                    continue
                size = self.count_tokens([line[: self.window]])[0]
            yield from self._by_characters(line, size, seam)
        if self.held:
            yield self._ended()

    def _ended(self) -> tuple[list[str], int]:
        ended = self.held, self.tokens
        self.held, self.tokens = [], 0
        return ended

    def _by_units(self, line: str, units: Units) -> Iterator[tuple[list[str], int]]:
        """Add a line, cut between units."""
        place, end = 0, len(units.starts)
        while (rest := units.tokens(place, end)) > (room := self.max_tokens - self.tokens):
            last = units.fitting(place, room)
            if self.held and (room < self.least or last == place):
                yield self._ended()
                continue
            last = units.border(place, last)
            self.held.append(line[units.starts[place] : units.ends[last - 1]])
            self.tokens += units.tokens(place, last)
            yield self._ended()
            place = last
        self.held.append(line[units.starts[place] :])
        self.tokens += rest

    def _by_characters(self, line: str, size: int, seam: int) -> Iterator[tuple[list[str], int]]:
        """Add a line, cut where `split_line` cuts; `size` are the tokens of its first window."""
        # `text` is the visible part of the line, `count` its tokens, and `taken` where the rest begins.
        text, count, taken = line[: self.window], size, self.window
        while True:
            room = self.max_tokens - self.tokens - (seam if self.held else 0)
            if taken < len(line) and (count <= room or len(text) < self.window // 2):
                # Double the window where much text has few tokens.
                more = max(self.window, len(text))
                text, taken = (text + line[taken : taken + more]).lstrip(), taken + more
                count = self.count_tokens([text])[0]
            elif room >= count:
                break
            elif self.held and room < self.least:
                yield self._ended()
            else:
                head, size, text, count = split_line(text, count, self.count_tokens, room)
                if head:
                    self.tokens += size + (seam if self.held else 0)
                    self.held.append(head)
                yield self._ended()
        if text:
            self.tokens += count + (seam if self.held else 0)
            self.held.append(text)

    def _counted(self, lines: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int, int, int]]:
        """(text, run, tokens of its first window, or of all where units are known, tokens of a line end)."""
        iterator = iter(lines)
        seam = 0 if self.units is not None else None
        while chunk := list(islice(iterator, _CHUNK)):
            texts = [text if self.units is not None else text[: self.window] for text, _ in chunk]
            counts = self.count_tokens(texts)
            if seam is None:
                seam = _seam(texts[: _PROBED_PAIRS + 1], counts[: _PROBED_PAIRS + 1], self.count_tokens)
            for (text, run), count in zip(chunk, counts, strict=True):
                yield text, run, count, seam


def _fitting(
    parts: list[str], count: int, count_tokens: CountTokens, max_tokens: int
) -> Iterator[tuple[str, int]]:
    """The joined parts as one example of `count` tokens or, if those are too many, as several."""
    text = "\n".join(parts)
    if count <= max_tokens or len(text) == 1:
        yield text, count
    elif len(parts) > 1:
        middle = len(parts) // 2
        for half in (parts[:middle], parts[middle:]):
            yield from _fitting(half, count_tokens(["\n".join(half)])[0], count_tokens, max_tokens)
    else:
        head, head_count, rest, rest_count = split_line(text, count, count_tokens, max_tokens)
        yield head, head_count
        if rest:
            yield from _fitting([rest], rest_count, count_tokens, max_tokens)


def split_line(text: str, count: int, count_tokens: CountTokens, room: int) -> tuple[str, int, str, int]:
    """(head, its tokens, rest, its tokens): the head has nearly `room` tokens, and no more.

    Exception: a single character of more tokens than `room` is a head of its own.
    """
    place = max(1, len(text) * room // max(1, count))
    while True:
        border = _border(text, place)
        head, rest = text[:border].rstrip(), text[border:].lstrip()
        head_count, rest_count = count_tokens([head, rest]) if rest else (*count_tokens([head]), 0)
        if head_count <= room or border <= 1:
            return head, head_count, rest, rest_count
        place = max(1, min(border - 1, border * room // head_count))


def _border(text: str, place: int) -> int:
    """Where to cut, at most at `place`: at a blank in the second half if any, else between characters."""
    blank = text.rfind(" ", max(1, place // 2), place + 1)
    if blank > 0:
        return blank
    if place >= len(text):
        return place
    # Marks stay with their letter (Indic vowels are marks too), unless there are too many of them.
    for border in range(place, max(1, place - 8), -1):
        joined = text[border] in _JOINERS or text[border - 1] == "\u200d"
        if not joined and not unicodedata.category(text[border]).startswith("M"):
            return border
    return place


def _seam(texts: list[str], counts: list[int], count_tokens: CountTokens) -> int:
    joined = count_tokens([f"{first}\n{second}" for first, second in pairwise(texts)])
    extra = [whole - sum(pair) for whole, pair in zip(joined, pairwise(counts), strict=True)]
    return max(0, ceil(sum(extra) / len(extra))) if extra else 0
