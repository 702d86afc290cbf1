"""Examples: consecutive lines packed until a sequence is nearly full."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from math import ceil

CountTokens = Callable[[list[str]], list[int]]

# Part of the identity of a corpus. 2: long lines are cut within a window.
PACKING_VERSION = 2
# A longer line is cut within windows of this many characters, or this many per token of an example. Each cut
# counts the tokens of the rest, so a cut that saw the whole line would make the time quadratic.
WINDOW_CHARACTERS, WINDOW_PER_TOKEN = 1024, 8

_CHUNK = 1000
_JOINERS = "\u200c\u200d"
_VERIFIED = 256
_PROBED_PAIRS = 64


def pack(
    lines: Iterable[tuple[str, int]], count_tokens: CountTokens, max_tokens: int
) -> Iterator[tuple[str, int]]:
    """(text, number of tokens) of examples, in order; no example has more than `max_tokens` tokens.

    lines         (text, run): only consecutive lines of one run share an example
    count_tokens  for each text, its tokens by the tokenizer that makes the most of it
    Lines are joined by a line end. A line that does not fit into the rest of an example is cut at a blank (if
    there is none, between two characters) and continues in the next one.
    """
    # The plan adds up the counts of lines, but a joined text may have more tokens: byte-level tokenizers have
    # one for the line end. So every example is counted again as a whole.
    planned = iter(_plan(lines, count_tokens, max_tokens))
    while batch := list(islice(planned, _VERIFIED)):
        counts = count_tokens(["\n".join(parts) for parts in batch])
        for parts, count in zip(batch, counts, strict=True):
            yield from _fitting(parts, count, count_tokens, max_tokens)


def _plan(
    lines: Iterable[tuple[str, int]], count_tokens: CountTokens, max_tokens: int
) -> Iterator[list[str]]:
    """The parts of each example, whose counts add up to at most `max_tokens`."""
    held: list[str] = []
    tokens, current = 0, -1
    # A shorter piece of a line is worth less than the padding that it saves.
    least = max(4, max_tokens // 8)
    window = max(WINDOW_CHARACTERS, WINDOW_PER_TOKEN * max_tokens)
    for line, run, size, seam in _counted(lines, count_tokens, window):
        if held and run != current:
            yield held
            held, tokens = [], 0
        # `text` is the visible part of the line, `count` its tokens, and `taken` where the rest begins.
        current, text, count, taken = run, line[:window], size, window
        while True:
            room = max_tokens - tokens - (seam if held else 0)
            if taken < len(line) and (count <= room or len(text) < window // 2):
                # Double the window where much text has few tokens.
                more = max(window, len(text))
                text, taken = (text + line[taken : taken + more]).lstrip(), taken + more
                count = count_tokens([text])[0]
            elif room >= count:
                break
            elif held and room < least:
                yield held
                held, tokens = [], 0
            else:
                head, _, text, count = split_line(text, count, count_tokens, room)
                yield [*held, head] if head else held
                held, tokens = [], 0
        if text:
            tokens += count + (seam if held else 0)
            held.append(text)
    if held:
        yield held


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


def _counted(
    lines: Iterable[tuple[str, int]], count_tokens: CountTokens, window: int
) -> Iterator[tuple[str, int, int, int]]:
    """(text, run, tokens of its first `window` characters, seam): the seam is the tokens of a line end."""
    iterator = iter(lines)
    seam = None
    while chunk := list(islice(iterator, _CHUNK)):
        texts = [text[:window] for text, _ in chunk]
        counts = count_tokens(texts)
        if seam is None:
            seam = _seam(texts[: _PROBED_PAIRS + 1], counts[: _PROBED_PAIRS + 1], count_tokens)
        for (text, run), count in zip(chunk, counts, strict=True):
            yield text, run, count, seam


def _seam(texts: list[str], counts: list[int], count_tokens: CountTokens) -> int:
    joined = count_tokens([f"{first}\n{second}" for first, second in pairwise(texts)])
    extra = [whole - sum(pair) for whole, pair in zip(joined, pairwise(counts), strict=True)]
    return max(0, ceil(sum(extra) / len(extra))) if extra else 0
