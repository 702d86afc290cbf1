"""Which encoding a text that is not UTF-8 may have: a name where its bytes tell, none where they do not.

A wrong name is worse than none: a conversion by it may go through, and leaves wrong letters that train a model.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Callable

# So much of a file is looked at.
SAMPLE_BYTES = 1 << 16
# Fewer letters outside ASCII tell nothing.
_LEAST_LETTERS = 20
# Letters that make up about two thirds of a text in Russian, Ukrainian, Bulgarian or Serbian.
_FREQUENT_CYRILLIC = set("оеаинтсрвлкі")
# Characters that make up a fifth to a third of a Chinese text, in simplified and in traditional form. Bytes of Japanese and
# Korean texts without kana and Hangul are Chinese characters too, but hardly ever these.
_FREQUENT_CHINESE = set(
    "的一是不了在人有我他这個个們们中来來上大为為和国國地到以说說时時要就出会會也你对對生能而子那得于於着著下自之年过過发發后後作里裡家"
)
# The same of Japanese. Bytes of Greek capitals in Korean and Chinese encodings are kana, and none of these.
_FREQUENT_KANA = set("のにはをたがでてしいるなんンイスルリアラー")
# Letters of CP1251 that are others, frequent ones, in further encodings of Cyrillic.
_RARE_CYRILLIC = set("ЂЃѓЉЊЌЋЏђљњќћџ")
# Before UTF-16's, for UTF-32's first mark begins with it.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_FREQUENT = {
    "GB18030": _FREQUENT_CHINESE,
    "BIG5": _FREQUENT_CHINESE,
    "EUC-JP": _FREQUENT_KANA,
    "CP932": _FREQUENT_KANA,
}
_WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")


def likely_encoding(sample: bytes) -> str | None:
    """The encoding of a text that is not UTF-8, by a name that `iconv` and Python know; None if its bytes do not tell.

    sample  the first bytes of the text; a character may be cut at its end
    Tells apart UTF-16 and UTF-32 (with a mark or without), CP949, GB18030, BIG5, CP932 (Shift-JIS), EUC-JP, CP1251 and
    KOI8-R. One-byte encodings of Latin letters differ in a few of them only, and are never named.
    """
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return name
    if b"\0" in sample:
        return next((name for name in _WIDE if _is_plain(sample, name)), None)
    # The order matters: Korean bytes are Chinese letters as well, and of Japanese ones so are the kana.
    for name, share, least in _RULES:
        letters = _letters(sample, name)
        if letters is None or sum(map(share, letters)) < least * len(letters):
            continue
        if name in _FREQUENT and sum(one in _FREQUENT[name] for one in letters) * 12 < len(letters):
            continue
        if share is _is_kana or _is_spread(letters, name):
            return name
    # Bytes of these are letters in every encoding of one byte: they tell where they are most of the letters alone.
    ascii_letters = sum(chr(byte).isascii() and chr(byte).isalpha() for byte in sample)
    for name in ("CP1251", "KOI8-R"):
        letters = _letters(sample, name)
        most = max(ascii_letters, 0.9 * sum(byte > 0x7F for byte in sample))
        if letters is None or len(letters) <= most or not _is_cyrillic(letters):
            continue
        # Mac's small я is CP1251's capital.
        if len(re.findall("[а-я][А-Я]", _decoded(sample, name) or "")) * 200 <= len(letters):
            return name
    return None


def conversion(sample: bytes) -> tuple[str, str]:
    """(what a text that is not UTF-8 seems to be, what to do), for a message."""
    look = "and look at the first lines of what comes out: a wrong encoding gives wrong letters, and no error"
    name = likely_encoding(sample)
    if name is not None:
        return f"they seem to be {name}", f"convert it, such as `iconv -f {name} -t UTF-8`, {look}"
    return (
        "which encoding they have, their bytes do not tell",
        f"ask where the file is from, convert it with `iconv -f ENCODING -t UTF-8`, {look}",
    )


def _decoded(sample: bytes, encoding: str) -> str | None:
    """The text by an encoding, without a character that is cut at the end; None where it has other bytes."""
    try:
        return codecs.getincrementaldecoder(encoding)("strict").decode(sample, final=False)
    except UnicodeDecodeError:
        return None


def _letters(sample: bytes, encoding: str) -> str | None:
    """The letters outside ASCII of a text by an encoding; None where it is none of it, or where they are few."""
    text = _decoded(sample, encoding)
    # Control and unassigned characters (C) count too: no text has them, and a wrong encoding makes them.
    letters = "".join(one for one in text or "" if one > "\x7f" and unicodedata.category(one)[0] in "LC")
    return letters if len(letters) >= _LEAST_LETTERS else None


def _is_plain(sample: bytes, encoding: str) -> bool:
    """Whether a text with NULs is plain text by a wide encoding: blanks and line ends, and no unassigned characters."""
    text = _decoded(sample, encoding)
    if not text or not any(one in text for one in " \n"):
        return False
    odd = sum(unicodedata.category(one) in ("Cn", "Co", "Cc") and not one.isspace() for one in text)
    # What is a blank by one order of bytes is U+2000 by the other, and a line end U+0A00.
    turned = sum(map(text.count, "\u2000\u0a00\u0d00"))
    return odd * 100 <= len(text) and turned < sum(map(text.count, " \n\r"))


def _in(encoding: str) -> Callable[[str], bool]:
    """Whether a character is in an encoding."""

    def within(character: str) -> bool:
        try:
            character.encode(encoding)
        except UnicodeEncodeError:
            return False
        return True

    return within


def _is_hangul(character: str) -> bool:
    # Of CP949's further syllables, which real text hardly has, bytes of other encodings make many. Python writes these in
    # EUC-KR by their parts, in eight bytes.
    return "가" <= character <= "힣" and len(character.encode("euc_kr")) == 2


def _is_kana(character: str) -> bool:
    return "ぁ" <= character <= "ヺ"


def _is_frequent_big5(character: str) -> bool:
    return _in("big5")(character) and character.encode("big5")[0] < 0xC7 and not _is_kana(character)


def _is_spread(letters: str, encoding: str) -> bool:
    """Whether letters begin with bytes of many kinds, as Han and Hangul do: Greek and Cyrillic of other encodings have one."""
    first = Counter(letter.encode(encoding)[0] for letter in letters)
    return max(first.values()) * 2 < len(letters)


def _is_cyrillic(letters: str) -> bool:
    """Whether letters are as frequent as in a text of Cyrillic letters."""
    frequent, rare = (sum(one in some for one in letters) for some in (_FREQUENT_CYRILLIC, _RARE_CYRILLIC))
    return frequent * 5 >= len(letters) * 3 and rare * 200 <= len(letters)


# An encoding, what its texts have much of, and the least share of that among letters outside ASCII.
_RULES: tuple[tuple[str, Callable[[str], bool], float], ...] = (
    ("CP949", _is_hangul, 0.9),
    ("EUC-JP", _is_kana, 0.25),
    ("CP932", _is_kana, 0.25),
    ("GB18030", _in("gb2312"), 0.95),
    ("BIG5", _is_frequent_big5, 0.9),
)
