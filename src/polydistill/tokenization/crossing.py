"""A teacher's predictions in another vocabulary: how it spells the teacher's pieces, and which tokens of a
text cover the same characters.

Both tokenizers read the same text, and tokens are matched by the characters that they cover. Where one
masked token of the teacher covers exactly m tokens of the student, the teacher's candidates that the student
spells with m pieces give each of the m positions a distribution. Where n tokens of the teacher cover m of the
student, the chain of the teacher's n predictions gives the probability of the text alone, as in approximate
likelihood matching (Minixhofer et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import models
from transformers.convert_slow_tokenizer import bytes_to_unicode

from polydistill.tokenization.encode import Encoded, as_text
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import CONTINUING, METASPACE, Piece

Ids = npt.NDArray[np.int64]
# A piece that needs more of the student's pieces is not a candidate anywhere.
MAX_SPELLING = 8
# In front of a piece within a word, to see where a pre-tokenizer cuts.
LETTER = "a"


@dataclass(frozen=True)
class Spellings:
    """A student's spelling of each piece of a teacher.

    ids      [V, MAX_SPELLING] the student's ids, -1 after the last
    lengths  [V] their number; 0 for a piece that the student cannot spell, or not within MAX_SPELLING
    """

    ids: Ids
    lengths: Ids


def spell(teacher: LoadedTokenizer, student: LoadedTokenizer) -> Spellings:
    """How the student's tokenizer spells the teacher's pieces, each at the start of a word or within one."""
    ids = np.full((teacher.size, MAX_SPELLING), -1, dtype=np.int64)
    lengths = np.zeros(teacher.size, dtype=np.int64)
    places = [index for index, piece in enumerate(teacher.pieces) if piece is not None and piece.surface]
    pieces = [piece for piece in teacher.pieces if piece is not None and piece.surface]
    unknown = student.special_ids["unk"]
    for index, spelled in zip(places, _spelled(pieces, student), strict=True):
        if 0 < len(spelled) <= MAX_SPELLING and unknown not in spelled:
            ids[index, : len(spelled)] = spelled
            lengths[index] = len(spelled)
    return Spellings(ids, lengths)


def _spelled(pieces: list[Piece], student: LoadedTokenizer) -> list[list[int]]:
    backend = as_text(student.backend)
    spelled: list[list[int]] = [[]] * len(pieces)
    starting = [place for place, piece in enumerate(pieces) if piece.starts_word]
    surfaces = [pieces[place].surface for place in starting]
    for place, encoding in zip(
        starting, backend.encode_batch(surfaces, add_special_tokens=False), strict=True
    ):
        spelled[place] = encoding.ids
    within = _within_words(student)
    for place, piece in enumerate(pieces):
        if not piece.starts_word:
            spelled[place] = within(piece.surface)
    return spelled


def _within_words(student: LoadedTokenizer) -> Callable[[str], list[int]]:
    """A function from a surface within a word to the student's ids."""
    backend = student.backend
    model = _continuing(student) if student.kind == "wordpiece" else backend.model
    to_bytes = bytes_to_unicode()

    def tokenized(surface: str, model: models.Model) -> list[int]:
        return [token.id for token in model.tokenize(surface)]

    def of(surface: str) -> list[int]:
        text = LETTER + surface
        if backend.normalizer is not None:
            # A normaliser may put a mark in front of the text.
            text = LETTER + backend.normalizer.normalize_str(text).partition(LETTER)[2]
        if student.kind == "byte_level":
            return tokenized("".join(to_bytes[b] for b in text[1:].encode("utf-8")), backend.model)
        if student.kind != "wordpiece" or backend.pre_tokenizer is None:
            return tokenized(text[1:].replace(" ", METASPACE), model)
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        ids = tokenized(words[0][1:], model) if len(words[0]) > 1 else []
        for word in words[1:]:
            # A punctuation mark or an ideograph is a word of its own.
            ids += tokenized(word, backend.model)
        return ids

    return of


def _continuing(student: LoadedTokenizer) -> models.WordPiece:
    """The student's WordPiece as it reads the rest of a word: its first piece is a continuing one too."""
    prefix = student.spec["model"].get("continuing_subword_prefix") or CONTINUING
    vocabulary: dict[str, int] = {}
    for string, index in student.backend.get_vocab(with_added_tokens=False).items():
        if string.startswith(prefix) and len(string) > len(prefix):
            vocabulary[string.removeprefix(prefix)] = vocabulary[string] = index
    unk = str(student.backend.id_to_token(student.special_ids["unk"]))
    vocabulary[unk] = student.special_ids["unk"]
    return models.WordPiece(
        vocabulary, unk_token=unk, continuing_subword_prefix=prefix, max_input_chars_per_word=100
    )


class Spans(NamedTuple):
    """The student's tokens that cover characters of the teacher's masked tokens, in the text's order.

    positions  [M] places of the student's tokens, ascending
    first      [M] the first masked one of the teacher's tokens that cover the same characters, by its place
    teacher    [M] how many tokens of the teacher cover them
    masked     [M] how many of those are masked
    student    [M] how many tokens of the student do
    part       [M] which of them this token is, from 0
    """

    positions: Ids
    first: Ids
    teacher: Ids
    masked: Ids
    student: Ids
    part: Ids


def match(teacher: Encoded, student: Encoded, masked: Ids) -> Spans:
    """Match a text's tokens by the characters that they cover.

    teacher, student  the same text, the teacher's as it was cut
    masked            [n] places of the teacher's masked tokens
    Characters that a student's unknown token covers have no position.
    """
    theirs, ours = np.flatnonzero(teacher.starts >= 0), np.flatnonzero(student.starts >= 0)
    starts = np.concatenate([teacher.starts[theirs], student.starts[ours]])
    ends = np.concatenate([teacher.ends[theirs], student.ends[ours]])
    order = np.lexsort((ends, starts))
    reach = np.maximum.accumulate(ends[order]) if len(order) else ends
    opens = np.ones(len(order), dtype=bool)
    opens[1:] = starts[order][1:] >= reach[:-1]
    group = np.empty(len(order), dtype=np.int64)
    group[order] = np.cumsum(opens) - 1
    number = int(opens.sum())
    group_of_theirs, group_of_ours = group[: len(theirs)], group[len(theirs) :]
    hidden = np.zeros(len(teacher.ids), dtype=bool)
    hidden[masked] = True
    of_teacher = np.bincount(group_of_theirs, minlength=number)
    of_masked = np.bincount(group_of_theirs[hidden[theirs]], minlength=number)
    of_student = np.bincount(group_of_ours, minlength=number)
    unknown = np.bincount(group_of_ours[~student.known[ours]], minlength=number) > 0
    first = np.full(number, -1, dtype=np.int64)
    # Reversed, so that the first of a group's tokens is written last.
    backwards = hidden[theirs][::-1]
    first[group_of_theirs[::-1][backwards]] = theirs[::-1][backwards]
    chosen = (of_masked > 0) & ~unknown
    taken = chosen[group_of_ours]
    groups = group_of_ours[taken]
    part = np.arange(len(groups)) - np.searchsorted(groups, groups)
    return Spans(ours[taken], first[groups], of_teacher[groups], of_masked[groups], of_student[groups], part)
