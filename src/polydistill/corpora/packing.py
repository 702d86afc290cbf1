"""Examples: spans of text packed from consecutive lines until a sequence is nearly full."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

CountTokens = Callable[[list[str]], list[int]]

_CHUNK = 1000


def pack(lines: Iterable[tuple[str, int]], count_tokens: CountTokens, max_tokens: int) -> Iterator[tuple[str, int]]:
    """(text, number of tokens) of examples, in order.

    lines         (text, run): only lines of one run, consecutive, share an example
    count_tokens  for each text, its tokens by the tokenizer that makes most of it
    Lines are joined by a line end. A line that does not fit into what is left of an example is cut at a blank
    (where there is none, between two characters) and goes on in the next one.
    """
    held: list[str] = []
    tokens, current = 0, -1
    # A stub of a line is worth less than the padding that it saves.
    least = max(4, max_tokens // 8)
    for line, run, size in _counted(lines, count_tokens):
        if held and run != current:
            yield "\n".join(held), tokens
            held, tokens = [], 0
        current, text, count = run, line, size
        while tokens + count > max_tokens:
            room = max_tokens - tokens
            if held and room < least:
                yield "\n".join(held), tokens
                held, tokens = [], 0
                continue
            head, head_count, text, count = split_line(text, count, count_tokens, room)
            if head:
                held.append(head)
                tokens += head_count
            if held:
                yield "\n".join(held), tokens
            held, tokens = [], 0
        if text:
            held.append(text)
            tokens += count
    if held:
        yield "\n".join(held), tokens


def split_line(text: str, count: int, count_tokens: CountTokens, room: int) -> tuple[str, int, str, int]:
    """(head, its tokens, rest, its tokens): the head takes at most `room` tokens and nearly fills it.

    A single character of more tokens than `room` becomes a head of its own, for tokenisation to cut.
    """
    place = max(1, len(text) * room // max(1, count))
    while True:
        border = _border(text, place)
        head, rest = text[:border].rstrip(), text[border:].lstrip()
        head_count, rest_count = count_tokens([head, rest]) if rest else (*count_tokens([head]), 0)
        if head_count <= room or border <= 1:
            return head, min(head_count, room), rest, rest_count
        place = max(1, min(border - 1, border * room // head_count))


def _border(text: str, place: int) -> int:
    """Where to cut at or before `place`: behind a blank if there is one in the second half, else between characters."""
    blank = text.rfind(" ", max(1, place // 2), place + 1)
    if blank > 0:
        return blank
    while place > 1 and place < len(text) and unicodedata.combining(text[place]):
        place -= 1
    return place


def _counted(lines: Iterable[tuple[str, int]], count_tokens: CountTokens) -> Iterator[tuple[str, int, int]]:
    iterator = iter(lines)
    while chunk := list(islice(iterator, _CHUNK)):
        counts = count_tokens([text for text, _ in chunk])
        for (text, run), count in zip(chunk, counts, strict=True):
            yield text, run, count
