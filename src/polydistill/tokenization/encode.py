"""Text to arrays of ids, with the place in the text where each token starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import regex
from tokenizers import Encoding, Tokenizer

from polydistill.tokenization.load import LoadedTokenizer

# Texts that are encoded at once: `tokenizers` keeps a hundred times the size of an id for each token.
ENCODED_AT_ONCE = 256

# A word, for any tokenizer: a run of letters, marks and digits; one character of a script without spaces; or
# one other character. Marks are included (Indic vowels are marks, which `\w` does not match).
_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
    r"|[\p{L}\p{M}\p{N}_\u200c\u200d--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]+|\S",
    regex.VERSION1,
)


# [0x3002] whether a character is a blank; the last entry is for all further ones.
_IS_BLANK = np.zeros(0x3002, dtype=bool)
_IS_BLANK[[9, 10, 13, 32, 0xA0, 0x3000]] = True


@dataclass(frozen=True)
class Encoded:
    """One text as tokens, special tokens included.

    ids     [L] int64
    starts  [L] int64, the text's character where each token starts (blanks skipped), -1 for special tokens
    ends    [L] int64, the character after its last one
    known   [L] whether the token is an ordinary piece: not special, not the unknown token
    """

    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    known: npt.NDArray[np.bool_]

    def cut(self, max_length: int) -> Encoded:
        """The text truncated to max_length tokens in all; the special tokens at both ends stay."""
        excess = len(self.ids) - max_length
        if excess <= 0:
            return self
        inside = np.flatnonzero(self.starts >= 0)
        kept = np.ones(len(self.ids), dtype=bool)
        kept[inside[max(0, len(inside) - excess) :]] = False
        return Encoded(self.ids[kept], self.starts[kept], self.ends[kept], self.known[kept])


def encode(tokenizer: LoadedTokenizer, texts: Sequence[str]) -> list[Encoded]:
    """Tokenise whole texts.

    A special token's string within a text (a literal `[MASK]`) is text: it becomes ordinary pieces or, if the
    vocabulary has it as a piece, the unknown token.
    """
    backend = as_text(tokenizer.backend)
    encoded = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        part = list(texts[start : start + ENCODED_AT_ONCE])
        encoded += [
            _encoded(text, encoding, tokenizer.is_control, tokenizer.special_ids["unk"])
            for text, encoding in zip(part, backend.encode_batch(part), strict=True)
        ]
    return encoded


def as_text(backend: Tokenizer) -> Tokenizer:
    """The same tokenizer, set to read whole texts and to treat a special token's string as ordinary text."""
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend


def _encoded(text: str, encoding: Encoding, is_control: npt.NDArray[np.bool_], unk_id: int) -> Encoded:
    ids = np.array(encoding.ids, dtype=np.int64)
    starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    frame = np.array(encoding.special_tokens_mask, dtype=bool)
    # Unigram vocabularies contain their special tokens as pieces.
    ids[~frame & is_control.take(ids, mode="clip")] = unk_id
    if text:
        # SentencePiece and byte-level tokens start at the blank before the word.
        characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        first = characters[np.minimum(starts, len(characters) - 1)]
        starts = starts + _IS_BLANK[np.minimum(first, len(_IS_BLANK) - 1)]
    return Encoded(ids, np.where(frame, -1, starts), ends, ~frame & (ids != unk_id))


def word_starts(text: str) -> npt.NDArray[np.int64]:
    """[W] the characters where the text's words start (see `_WORD`), ascending."""
    return np.array([match.start() for match in _WORD.finditer(text)], dtype=np.int64)


def masking_units(
    text: str, copies: Sequence[Encoded]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """([W] the characters where units start, ascending; [W] which of them may be masked).

    copies  the whole text by every tokenizer whose copies must mask the same characters
    A unit is a word, or several words that share a piece of some tokenizer. A unit with a piece that is
    unknown to some tokenizer is never masked: no model can learn to predict it.
    """
    words = word_starts(text)
    if not len(words):
        return words, np.zeros(0, dtype=bool)
    # Words that begin within a piece: +1 at a piece's first such word, -1 after its last one.
    within = np.zeros(len(words) + 1, dtype=np.int64)
    unknown = []
    for encoded in copies:
        inside = encoded.starts >= 0
        starts, ends = encoded.starts[inside], encoded.ends[inside]
        first = np.searchsorted(words, starts, side="right")
        last = np.maximum(np.searchsorted(words, ends, side="left"), first)
        within += np.bincount(first, minlength=len(within)) - np.bincount(last, minlength=len(within))
        unknown.append(starts[~encoded.known[inside]])
    joined = np.cumsum(within[:-1]) > 0
    joined[0] = False
    units = words[~joined]
    maskable = np.ones(len(units), dtype=bool)
    maskable[np.maximum(np.searchsorted(units, np.concatenate(unknown), side="right") - 1, 0)] = False
    return units, maskable
