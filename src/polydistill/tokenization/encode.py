"""Text to arrays of ids, with where in the text each token starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import regex
from tokenizers import Tokenizer

# Texts whose encodings are in memory together: what `tokenizers` keeps of a token takes a hundred times its id.
ENCODED_AT_ONCE = 256

# A word, for any tokenizer: a run of letters, marks and digits; one character of a script that writes no
# spaces; or one other character. Marks count in (Indic vowels are marks, and `\w` leaves them out).
_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
    r"|[\p{L}\p{M}\p{N}_\u200c\u200d--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]+|\S",
    regex.VERSION1,
)


@dataclass(frozen=True)
class Encoded:
    """One text as tokens, special tokens included.

    ids     [L] int64
    starts  [L] int64, the text's character where each token starts (blanks skipped), -1 for special tokens
    """

    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


def encode(backend: Tokenizer, texts: Sequence[str], max_length: int) -> list[Encoded]:
    """Tokenise texts, cut to max_length tokens (special tokens included)."""
    backend.enable_truncation(max_length)
    found = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        part = list(texts[start : start + ENCODED_AT_ONCE])
        found += [
            _encoded(text, encoding) for text, encoding in zip(part, backend.encode_batch(part), strict=True)
        ]
    return found


def _encoded(text: str, encoding: Any) -> Encoded:
    ids = np.array(encoding.ids, dtype=np.int64)
    starts = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 0]
    special = np.array(encoding.special_tokens_mask, dtype=bool)
    if text:
        # SentencePiece and byte-level tokens start at the blank before the word.
        characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        blank = np.isin(characters[np.minimum(starts, len(characters) - 1)], (9, 10, 13, 32, 0xA0, 0x3000))
        starts = starts + blank
    return Encoded(ids, np.where(special, -1, starts))


def count_tokens(backends: Sequence[Tokenizer], texts: Sequence[str]) -> list[int]:
    """For each text, the largest number of tokens that any tokenizer makes of it, special tokens left out."""
    counts = np.zeros(len(texts), dtype=np.int64)
    for backend in backends:
        backend.no_truncation()
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        counts = np.maximum(counts, np.array([len(encoding) for encoding in encodings], dtype=np.int64))
    return [int(count) for count in counts]


def word_starts(text: str) -> npt.NDArray[np.int64]:
    """[W] the characters where the text's words start (see `_WORD`), ascending."""
    return np.array([match.start() for match in _WORD.finditer(text)], dtype=np.int64)
