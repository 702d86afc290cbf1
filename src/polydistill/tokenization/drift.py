"""How the student's union tokenizer segments a language, compared with the teacher's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from polydistill.tokenization.encode import as_text, encode, word_starts
from polydistill.tokenization.load import LoadedTokenizer


@dataclass(frozen=True)
class Segmentation:
    """How two tokenizers with the same ids segment the same texts.

    drift                 share of the own tokenizer's tokens (id and place) that the union tokenizer lacks
    changed_words         share of words that the two split differently
    fertility, own_fertility        tokens per word
    unknown_share, own_unknown_share  share of tokens that are unk
    characters_per_token, own_characters_per_token
    """

    drift: float
    changed_words: float
    fertility: float
    own_fertility: float
    unknown_share: float
    own_unknown_share: float
    characters_per_token: float
    own_characters_per_token: float

    def as_dict(self) -> dict[str, float]:
        """The measures by name, rounded to six places."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def compare_segmentation(
    student: LoadedTokenizer, teacher: LoadedTokenizer, texts: Sequence[str]
) -> Segmentation:
    """Compare a student's tokenizer with a teacher's of other ids: tokens are equal if they cover the same
    characters.
    """
    tokens, unknown = np.zeros(2), np.zeros(2)
    num_missing = num_changed = num_words = num_characters = 0
    for text, *encoded in zip(texts, encode(student, texts), encode(teacher, texts), strict=True):
        starts = word_starts(text)
        spans = []
        for side, each in enumerate(encoded):
            inside = each.starts >= 0
            tokens[side] += int(inside.sum())
            unknown[side] += int((inside & ~each.known).sum())
            spans.append(set(zip(each.starts[inside].tolist(), each.ends[inside].tolist(), strict=True)))
        missing = spans[1] - spans[0]
        num_missing += len(missing)
        ends = np.array([end for _, end in missing | (spans[0] - spans[1])], dtype=np.int64)
        num_changed += len(np.unique(np.searchsorted(starts, ends - 1, side="right"))) if len(ends) else 0
        num_words += len(starts)
        num_characters += len(text)
    return _shares(tokens, unknown, num_missing, num_changed, num_words, num_characters)


def segmentation(union: Tokenizer, own: Tokenizer, texts: Sequence[str], *, unk_id: int) -> Segmentation:
    """Compare the union tokenizer with a language's own (renumbered) one on texts of the language."""
    union, own = as_text(union), as_text(own)
    num_tokens = np.zeros(2)
    num_unknown = np.zeros(2)
    num_missing = num_changed = num_words = num_characters = 0
    for text, *encodings in zip(
        texts,
        union.encode_batch(list(texts), add_special_tokens=False),
        own.encode_batch(list(texts), add_special_tokens=False),
        strict=True,
    ):
        starts = word_starts(text)
        token_sets = []
        for side, encoding in enumerate(encodings):
            ids = np.array(encoding.ids, dtype=np.int64)
            num_tokens[side] += len(ids)
            num_unknown[side] += int((ids == unk_id).sum())
            # A token's end is a better place than its start: some tokenizers include the blank before it.
            token_sets.append(
                {(end, token) for (_, end), token in zip(encoding.offsets, encoding.ids, strict=True)}
            )
        missing, extra = token_sets[1] - token_sets[0], token_sets[0] - token_sets[1]
        num_missing += len(missing)
        ends = np.array([end for end, _ in missing | extra], dtype=np.int64)
        num_changed += len(np.unique(np.searchsorted(starts, ends - 1, side="right"))) if len(ends) else 0
        num_words += len(starts)
        num_characters += len(text)
    return _shares(num_tokens, num_unknown, num_missing, num_changed, num_words, num_characters)


def _shares(
    num_tokens: npt.NDArray[np.float64],
    num_unknown: npt.NDArray[np.float64],
    num_missing: int,
    num_changed: int,
    num_words: int,
    num_characters: int,
) -> Segmentation:
    tokens = np.maximum(num_tokens, 1)
    words = max(num_words, 1)
    return Segmentation(
        drift=float(num_missing / tokens[1]),
        changed_words=min(1.0, num_changed / words),
        fertility=float(num_tokens[0] / words),
        own_fertility=float(num_tokens[1] / words),
        unknown_share=float(num_unknown[0] / tokens[0]),
        own_unknown_share=float(num_unknown[1] / tokens[1]),
        characters_per_token=float(num_characters / tokens[0]),
        own_characters_per_token=float(num_characters / tokens[1]),
    )
