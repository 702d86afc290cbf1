"""Cleaning of lines, with a reason for every dropped line."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# Control and surrogate characters, private use (tokenizers use it as marks), the byte order mark and the
# marks that change the direction of text. The joiners U+200C and U+200D stay: Indic and Persian spelling
# needs them.
_REMOVED = re.compile(
    r"[\x00-\x1F\x7F-\x9F\uD800-\uDFFF\uE000-\uF8FF\U000F0000-\U0010FFFF\uFEFF\uFFFD\u202A-\u202E\u2066-\u2069]"
)
_ZERO_WIDTH_SPACE, _REPLACEMENT = "\u200b", "\ufffd"


def clean_line(line: str, *, min_characters: int, dropped: Counter[str], changed: Counter[str]) -> str | None:
    """The line in NFC without control characters and repeated blanks, or None if too little is left.

    dropped  counts `empty` and `too_short`
    changed  counts `normalised` and `control_characters`
    """
    text = _one_blank(line)
    # Printable characters include no control, surrogate, private or format character: most lines need no
    # slower look.
    if not text.isprintable() or _REPLACEMENT in text:
        removed = _REMOVED.sub("", text)
        if removed != text:
            changed["control_characters"] += 1
            text = _one_blank(removed)
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        changed["normalised"] += 1
        text = unicodedata.normalize("NFC", text).strip()
    if not text:
        dropped["empty"] += 1
        return None
    if len(text) < min_characters:
        dropped["too_short"] += 1
        return None
    return text


def _one_blank(text: str) -> str:
    """Without blanks at the ends, and with one blank for several."""
    if _ZERO_WIDTH_SPACE in text:
        text = text.replace(_ZERO_WIDTH_SPACE, " ")
    return " ".join(text.split())
