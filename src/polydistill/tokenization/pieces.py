"""Canonical pieces: the meaning of a vocabulary entry, independent of the tokenizer.

A canonical piece is (starts a word?, surface string). `##x` of WordPiece is (no, x); `▁x` of SentencePiece
and `Ġx` of byte-level BPE are (yes, x). Bytes that are not whole characters are written as `<0xE3>`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from transformers.convert_slow_tokenizer import bytes_to_unicode

# U+E000 is private use, and BERT's normaliser removes it from text: a piece that starts with it is never
# matched. It marks a piece that WordPiece cannot write otherwise.
ESCAPE = "\ue000"
# Fills the ids of other languages' pieces in a language's own tokenizer. Not every normaliser removes private
# use; but neither words nor metaspace and byte-level text contain blanks, so an entry with one is never
# matched.
FOREIGN = "\ue001 "
# A tokenizer's JSON, as `tokenizers` writes it.
Spec = dict[str, Any]
METASPACE = "▁"
CONTINUING = "##"
ROLES = ("pad", "unk", "cls", "sep", "mask")
STUDENT_SPECIALS = {role: f"[{role.upper()}]" for role in ROLES}

_UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>|\[UNUSED_?\d+\]|madeupword\d+")
_BYTES_OF = {character: byte for byte, character in bytes_to_unicode().items()}


class Piece(NamedTuple):
    """A vocabulary entry, independent of its tokenizer."""

    starts_word: bool
    surface: str


def is_unused(string: str) -> bool:
    """Whether a vocabulary entry is a reserved slot such as `[unused7]`."""
    return _UNUSED.fullmatch(string) is not None


def from_wordpiece(string: str, prefix: str = CONTINUING) -> Piece:
    """`##x` → (no, x); any other string → (yes, string)."""
    if prefix and string.startswith(prefix):
        return Piece(False, string[len(prefix) :])
    return Piece(True, string)


def from_metaspace(string: str) -> Piece:
    """`▁x` → (yes, x); any other string → (no, string)."""
    if string.startswith(METASPACE):
        return Piece(True, string[1:])
    return Piece(False, string)


def from_byte_level(string: str) -> Piece:
    """`Ġx` → (yes, x), the bytes decoded as UTF-8; bytes that are not whole characters become `<0xNN>`."""
    try:
        raw = bytes(_BYTES_OF[character] for character in string)
    except KeyError:  # an added token, written as plain text
        return Piece(False, string)
    starts_word = raw.startswith(b" ")
    text = raw.removeprefix(b" ").decode("utf-8", "surrogateescape")
    return Piece(starts_word, re.sub("[\udc80-\udcff]", lambda m: f"<0x{ord(m[0]) - 0xDC00:02X}>", text))


def to_wordpiece(piece: Piece) -> str:
    """A piece's string in a WordPiece vocabulary, unique for each piece.

    Strings that would be read as another piece, or as a special token, get the prefix ESCAPE.
    """
    surface = piece.surface
    ambiguous = (
        not surface
        or surface.startswith((ESCAPE, FOREIGN))
        or (piece.starts_word and (surface.startswith(CONTINUING) or surface in STUDENT_SPECIALS.values()))
    )
    string = ESCAPE + surface if ambiguous else surface
    return string if piece.starts_word else CONTINUING + string


def read_wordpiece(string: str) -> Piece:
    """The piece that `to_wordpiece` wrote as `string`."""
    piece = from_wordpiece(string)
    return Piece(piece.starts_word, piece.surface.removeprefix(ESCAPE))


def kind_of(spec: Spec) -> str:
    """`wordpiece`, `unigram`, `byte_level`, `bpe` or `wordlevel`, from a tokenizer's JSON."""
    model = spec["model"].get("type", "BPE")
    if model == "BPE":
        return "byte_level" if _mentions(spec, "ByteLevel") else "bpe"
    return str(model).lower()


def canonical(string: str, kind: str, prefix: str = CONTINUING) -> Piece:
    """The canonical piece of a vocabulary entry; `kind` is the tokenizer's (see `kind_of`)."""
    if kind == "byte_level":
        return from_byte_level(string)
    if kind in ("unigram", "bpe"):
        return from_metaspace(string)
    if kind == "wordlevel":
        return Piece(True, string)
    return from_wordpiece(string, prefix)


def _mentions(spec: Spec, step: str) -> bool:
    """Whether the tokenizer has a pre-tokenizer or decoder of this type, at any depth."""

    def within(part: object) -> bool:
        if isinstance(part, dict):
            return part.get("type") == step or any(within(value) for value in part.values())
        return isinstance(part, list) and any(within(value) for value in part)

    return within(spec.get("pre_tokenizer")) or within(spec.get("decoder"))
