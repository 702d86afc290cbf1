"""A store's examples in another vocabulary, without the teacher: see `tokenization.crossing`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.errors import StoreError
from polydistill.masking import uniform
from polydistill.store.reader import StoreRow
from polydistill.store.writer import ScoredExample
from polydistill.tokenization.crossing import MAX_SPELLING, Spans, Spellings, match, spell
from polydistill.tokenization.encode import Encoded, encode
from polydistill.tokenization.load import LoadedTokenizer

# Of the draws of random pieces; the streams of `masking` come before it.
_STREAM = 5
# Part of the identity of labels in another vocabulary.
CROSSING_VERSION = 1
# A longest sequence, where labels are measured on whole texts.
UNCUT = 10**9


@dataclass
class Coverage:
    """What becomes of a store's labels in another vocabulary. Counts of the student's masked positions, and
    sums of the teacher's stored probability.

    positions    in all
    candidates   with at least one of the teacher's candidates
    likelihood   with the probability of the text alone, for several of the teacher's tokens cover it
    gold         with neither
    stored       probability that the teacher's store holds
    expressible  of it, what the student's positions can say
    tokens       (teacher, student) tokens of the texts, special tokens included
    """

    positions: int = 0
    candidates: int = 0
    likelihood: int = 0
    gold: int = 0
    stored: float = 0.0
    expressible: float = 0.0
    teacher_tokens: int = 0
    student_tokens: int = 0

    def __iadd__(self, other: Coverage) -> Coverage:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


class Crossing(NamedTuple):
    """The two tokenizers, and how the student's spells the teacher's pieces.

    max_lengths  (teacher's, student's) longest sequences in tokens
    """

    teacher: LoadedTokenizer
    student: LoadedTokenizer
    spellings: Spellings
    max_lengths: tuple[int, int]

    @classmethod
    def prepare(
        cls, teacher: LoadedTokenizer, student: LoadedTokenizer, max_lengths: tuple[int, int]
    ) -> Crossing:
        """Spell the teacher's pieces."""
        return cls(teacher, student, spell(teacher, student), max_lengths)


def cross(
    rows: Sequence[StoreRow], texts: Sequence[str], crossing: Crossing, *, seed: int
) -> tuple[list[ScoredExample], Coverage]:
    """Store rows in the student's vocabulary, in their order, without those that lose every masked position.

    texts  of the rows
    seed   of the pieces that stand where the teacher saw random ones
    Raises StoreError if a row is not its text as the teacher's tokenizer cuts it.
    """
    teacher, student, _, (theirs, ours) = crossing
    made, coverage = [], Coverage()
    encoded = zip(rows, encode(teacher, texts), encode(student, texts), strict=True)
    for row, of_teacher, of_student in encoded:
        seen, cut = of_teacher.cut(theirs), of_student.cut(ours)
        _check(row, seen)
        spans = match(seen, cut, row.positions.astype(np.int64))
        example, of_row = _cross(row, seen, cut, spans, crossing, seed)
        coverage += of_row
        if len(spans.positions):
            made.append(example)
    return made, coverage


def _check(row: StoreRow, seen: Encoded) -> None:
    restored = row.input_ids.astype(np.int64)
    restored[row.positions] = row.gold
    if not np.array_equal(restored, seen.ids):
        raise StoreError(
            "store",
            f"{row.example:016x}",
            "holds this example in other tokens than the teacher's tokenizer makes of its text",
            "pass the tokenizer and the text that it was scored with",
        )


def _cross(
    row: StoreRow, seen: Encoded, cut: Encoded, spans: Spans, crossing: Crossing, seed: int
) -> tuple[ScoredExample, Coverage]:
    spellings = crossing.spellings
    gold = cut.ids[spans.positions]
    # [L] which masked token a place of the teacher's is.
    index = np.full(len(seen.ids), -1, dtype=np.int64)
    index[row.positions] = np.arange(len(row.positions))
    first = index[spans.first]
    golds = np.concatenate([[0.0], np.cumsum(row.gold_logprobs.astype(np.float64))])
    whole = golds[np.minimum(first + spans.masked, len(golds) - 1)] - golds[first]
    # Of a text that takes m positions, each says the m-th root.
    each = whole / spans.student
    one, many = spans.teacher == 1, (spans.teacher > 1) & (spans.masked == spans.teacher)
    candidates, logprobs = row.top_ids[first].astype(np.int64), row.top_logprobs[first].astype(np.float32)
    said = one[:, None] & (spellings.lengths[candidates] == spans.student[:, None]) & np.isfinite(logprobs)
    has = said.any(axis=1)
    # A group of more tokens than any spelling has no candidate.
    part = np.minimum(spans.part, MAX_SPELLING - 1)
    top_ids = np.where(said, spellings.ids[candidates, part[:, None]], gold[:, None])
    top_logprobs = np.where(said, logprobs, -np.inf).astype(np.float32)
    # Without a candidate, the text's piece is the only one.
    top_logprobs[~has, 0] = np.where(many, each, 0.0)[~has]
    example = ScoredExample(
        row.example,
        _inputs(row, cut, spans, first, crossing, seed),
        spans.positions,
        gold,
        each.astype(np.float32),
        top_ids,
        top_logprobs,
    )
    heads = spans.part == 0
    return example, Coverage(
        positions=len(gold),
        candidates=int(has.sum()),
        likelihood=int((many & ~has).sum()),
        gold=int((~many & ~has).sum()),
        stored=float(np.exp(row.top_logprobs.astype(np.float64)).sum()),
        expressible=float(np.exp(np.where(said, logprobs, -np.inf)[heads].astype(np.float64)).sum()),
        teacher_tokens=len(seen.ids),
        student_tokens=len(cut.ids),
    )


def _inputs(
    row: StoreRow, cut: Encoded, spans: Spans, first: npt.NDArray[np.int64], crossing: Crossing, seed: int
) -> npt.NDArray[np.int64]:
    """[L] the student's input: masked, kept or replaced where the teacher's was."""
    teacher, student, _, _ = crossing
    shown = row.input_ids[row.positions][first].astype(np.int64)
    kept = shown == row.gold[first]
    drawn = uniform(seed, row.example, spans.positions, _STREAM)
    pieces = student.ordinary_ids[(drawn * len(student.ordinary_ids)).astype(np.int64)]
    inputs = cut.ids.copy()
    inputs[spans.positions] = np.where(
        shown == teacher.special_ids["mask"],
        student.special_ids["mask"],
        np.where(kept, cut.ids[spans.positions], pieces),
    )
    return inputs
