"""The likely encoding of a text that is not UTF-8: a name if its bytes show it, otherwise none.

A wrong name is worse than none: the conversion may succeed, and a model is then trained on wrong letters.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Callable

# Bytes of a file that are examined.
SAMPLE_BYTES = 1 << 16
# Fewer letters outside ASCII show nothing.
_LEAST_LETTERS = 20
# Letters that make up about two thirds of a text in Russian, Ukrainian, Bulgarian or Serbian.
_FREQUENT_CYRILLIC = set("оеаинтсрвлкі")
# Characters that make up a fifth to a third of a Chinese text, in simplified and traditional form. The bytes
# of Japanese and Korean texts without kana and Hangul are Chinese characters too, but rarely these.
_FREQUENT_CHINESE = set(
    "的一是不了在人有我他这個个們们中来來上大为為和国國地到以说說时時要就出会會也你对對生能而子那得于於着著下自之年过過发發后後作里裡家"
)
# The same for Japanese. The bytes of Greek capitals in Korean and Chinese encodings are kana, but none of
# these.
_FREQUENT_KANA = set("のにはをたがでてしいるなんンイスルリアラー")
# Rare letters of CP1251 whose bytes are frequent letters in other encodings of Cyrillic.
_RARE_CYRILLIC = set("ЂЃѓЉЊЌЋЏђљњќћџ")
# UTF-32 comes first, because its first mark begins with UTF-16's.
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
    """The encoding of a text that is not UTF-8, by a name for both `iconv` and Python; None if it is unclear.

    sample  the first bytes of the text; its last character may be cut
    Distinguishes UTF-16 and UTF-32 (with or without a mark), CP949, GB18030, BIG5, CP932 (Shift-JIS), EUC-JP,
    CP1251 and KOI8-R. One-byte encodings of Latin letters differ in only a few of them, and are never named.
    """
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return name
    if b"\0" in sample:
        return next((name for name in _WIDE if _is_plain(sample, name)), None)
    # The order matters: Korean bytes are Chinese letters as well, and so are those of Japanese kana.
    for name, share, least in _RULES:
        letters = _letters(sample, name)
        if letters is None or sum(map(share, letters)) < least * len(letters):
            continue
        if name in _FREQUENT and sum(letter in _FREQUENT[name] for letter in letters) * 12 < len(letters):
            continue
        if share is _is_kana or _is_spread(letters, name):
            return name
    # These bytes are letters in every one-byte encoding: they show something only if they are most of the
    # letters.
    ascii_letters = sum(chr(byte).isascii() and chr(byte).isalpha() for byte in sample)
    for name in ("CP1251", "KOI8-R"):
        letters = _letters(sample, name)
        most = max(ascii_letters, 0.9 * sum(byte > 0x7F for byte in sample))
        if letters is None or len(letters) <= most or not _is_cyrillic(letters):
            continue
        # The Mac's small я is CP1251's capital one.
        if len(re.findall("[а-я][А-Я]", _decoded(sample, name) or "")) * 200 <= len(letters):
            return name
    return None


def conversion(sample: bytes) -> tuple[str, str]:
    """(the likely encoding of a text that is not UTF-8, the remedy), for a message."""
    look = "and check the first lines of the output: a wrong encoding gives wrong letters, and no error"
    name = likely_encoding(sample)
    if name is not None:
        return f"they seem to be {name}", f"convert it with `iconv -f {name} -t UTF-8`, {look}"
    return (
        "their bytes do not show which encoding they have",
        f"find out its encoding at its source, convert it with `iconv -f ENCODING -t UTF-8`, {look}",
    )


def _decoded(sample: bytes, encoding: str) -> str | None:
    """The text decoded, without a character that is cut at the end; None if some bytes are invalid."""
    try:
        return codecs.getincrementaldecoder(encoding)("strict").decode(sample, final=False)
    except UnicodeDecodeError:
        return None


def _letters(sample: bytes, encoding: str) -> str | None:
    """The letters outside ASCII of a decoded text; None if some bytes are invalid or the letters are few."""
    text = _decoded(sample, encoding) or ""
    # Control and unassigned characters (C) count too: real text has none, and a wrong encoding produces them.
    letters = "".join(char for char in text if char > "\x7f" and unicodedata.category(char)[0] in "LC")
    return letters if len(letters) >= _LEAST_LETTERS else None


def _is_plain(sample: bytes, encoding: str) -> bool:
    """Whether a text with NULs is plain text in a wide encoding: blanks, and few unassigned characters."""
    text = _decoded(sample, encoding)
    if not text or not any(blank in text for blank in " \n"):
        return False
    odd = sum(unicodedata.category(char) in ("Cn", "Co", "Cc") and not char.isspace() for char in text)
    # In the wrong byte order, a blank is U+2000 and a line end U+0A00.
    turned = sum(map(text.count, "\u2000\u0a00\u0d00"))
    return odd * 100 <= len(text) and turned < sum(map(text.count, " \n\r"))


def _in(encoding: str) -> Callable[[str], bool]:
    """A predicate: whether a character is in an encoding."""

    def within(character: str) -> bool:
        try:
            character.encode(encoding)
        except UnicodeEncodeError:
            return False
        return True

    return within


def _is_hangul(character: str) -> bool:
    # Bytes of other encodings often decode to CP949's additional syllables, which are rare in real text.
    # Python encodes those by their parts in EUC-KR, in eight bytes.
    return "가" <= character <= "힣" and len(character.encode("euc_kr")) == 2


def _is_kana(character: str) -> bool:
    return "ぁ" <= character <= "ヺ"


def _is_frequent_big5(character: str) -> bool:
    return _in("big5")(character) and character.encode("big5")[0] < 0xC7 and not _is_kana(character)


def _is_spread(letters: str, encoding: str) -> bool:
    """Whether letters have many first bytes, as Han and Hangul do; Greek and Cyrillic elsewhere have one."""
    first = Counter(letter.encode(encoding)[0] for letter in letters)
    return max(first.values()) * 2 < len(letters)


def _is_cyrillic(letters: str) -> bool:
    """Whether letters have the frequencies of a Cyrillic text."""
    frequent = sum(letter in _FREQUENT_CYRILLIC for letter in letters)
    rare = sum(letter in _RARE_CYRILLIC for letter in letters)
    return frequent * 5 >= len(letters) * 3 and rare * 200 <= len(letters)


# An encoding, a kind of character that is frequent in its texts, and its minimum share of the letters outside
# ASCII.
_RULES: tuple[tuple[str, Callable[[str], bool], float], ...] = (
    ("CP949", _is_hangul, 0.9),
    ("EUC-JP", _is_kana, 0.25),
    ("CP932", _is_kana, 0.25),
    ("GB18030", _in("gb2312"), 0.95),
    ("BIG5", _is_frequent_big5, 0.9),
)
