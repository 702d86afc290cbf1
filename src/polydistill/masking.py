"""Which positions are masked: a function of the seed alone.

A unit (a word, or a token) is identified by the character where it starts, so that two tokenizers' copies of
a text mask the same words. Draws come from a hash of (seed, example, unit): stateless, in any order, on any
machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.config.shared import Masking
from polydistill.tokenization.encode import encode, masking_units
from polydistill.tokenization.load import LoadedTokenizer

Unit = Literal["words", "tokens"]

# Part of the identity of stores, models and evaluations. 2: words that share a piece are one unit, unknown
# pieces are never masked, and a short text more often has no mask than one.
MASKS_VERSION = 2

_SELECT, _ACTION, _PIECE, _ROUND = 1, 2, 3, 4

# Bits of a character's place in its text, in a number that orders characters of several texts.
_TEXT_BITS = 40


@dataclass(frozen=True)
class Masked:
    """A masked copy of one tokenised text.

    input_ids  [L] the model's input
    positions  [M] ascending positions that the model must predict
    gold       [M] the original tokens there
    """

    input_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    gold: npt.NDArray[np.int64]


def uniform(
    seed: int, example: int | npt.NDArray[np.uint64], keys: npt.NDArray[np.int64], stream: int
) -> npt.NDArray[np.float64]:
    """[N] numbers in [0, 1), one per key: SplitMix64 (Steele, Lea and Flood 2014) of all arguments.

    example  one id, or [N] uint64: the id of each key's example
    """
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream))
        state = _mix(state ^ np.asarray(example, dtype=np.uint64))
        mixed = _mix(state + keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


@dataclass(frozen=True)
class Maskable:
    """A tokenised text whose units may be masked.

    ids, starts  [L] tokens, and the characters where they start, -1 for tokens that are never masked
    words        [W] the characters where the text's words start, ascending
    maskable     [W] which of them may be drawn
    example      the example's id: together with the seed it determines all draws
    """

    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    maskable: npt.NDArray[np.bool_]
    example: int


def mask(
    texts: Sequence[Maskable],
    *,
    seed: int,
    mask_id: int,
    ordinary_ids: npt.NDArray[np.int64],
    unit: Unit = "words",
    probability: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> list[Masked]:
    """Mask texts: `mask_share` of the selected units become the mask token, `random_share` random pieces.

    ordinary_ids  ids that random tokens are drawn from
    The expected share of masked units is `probability` for a text of any length: a text of one word is masked
    in that share of its draws, and has no masked position in the others. A text's masks do not depend on the
    texts beside it.
    """
    if not texts:
        return []
    examples = np.array([text.example for text in texts], dtype=np.uint64)
    ids, starts, text_of = _flat([text.ids for text in texts], [text.starts for text in texts])
    where = np.flatnonzero(starts >= 0)
    units, unit_of, drawable = _units(texts, text_of[where], starts[where], unit)
    selected = _select(units, drawable, examples, seed, probability)
    # A text of blanks has pieces and no word.
    hit = selected[unit_of] & (units.text[unit_of] == text_of[where]) if len(selected) else where < 0
    positions, example, keys = where[hit], examples[text_of[where[hit]]], units.start[unit_of[hit]]
    offsets = np.cumsum([0] + [len(text.ids) for text in texts])
    within = positions - offsets[text_of[positions]]
    action = uniform(seed, example, keys, _ACTION)
    pieces = ordinary_ids[(uniform(seed, example, within, _PIECE) * len(ordinary_ids)).astype(np.int64)]
    masked = ids.copy()
    masked[positions] = np.where(
        action < mask_share, mask_id, np.where(action < mask_share + random_share, pieces, ids[positions])
    )
    ends = np.searchsorted(positions, offsets)
    return [
        Masked(masked[start:end], within[first:last], ids[positions[first:last]])
        for start, end, first, last in zip(offsets, offsets[1:], ends, ends[1:], strict=False)
    ]


class _Units(NamedTuple):
    """[U] units of several texts in a row: their text, and the character where each starts in it."""

    text: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]


def _units(
    texts: Sequence[Maskable], text_of: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], unit: Unit
) -> tuple[_Units, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(units, [N] the unit of each token, [D] the units that may be drawn, ascending).

    text_of, starts  [N] the text of each token, and the character where it starts
    """
    if unit == "tokens":
        spread, unit_of = np.unique(_spread(text_of, starts), return_inverse=True)
        units = _Units(spread >> _TEXT_BITS, spread & ((1 << _TEXT_BITS) - 1))
        return units, unit_of, np.arange(len(spread))
    # A token belongs to the word that contains its first character. All words of the text are in the draw,
    # those after the cut too: so the choice does not depend on the tokenizer.
    words, allowed, word_text = _flat(
        [text.words for text in texts], [text.maskable.astype(np.int64) for text in texts]
    )
    unit_of = np.searchsorted(_spread(word_text, words), _spread(text_of, starts), side="right") - 1
    # What precedes a text's first word belongs to it.
    unit_of = np.maximum(unit_of, np.searchsorted(word_text, text_of))
    return _Units(word_text, words), np.minimum(unit_of, len(words) - 1), np.flatnonzero(allowed)


def _select(
    units: _Units,
    drawable: npt.NDArray[np.int64],
    examples: npt.NDArray[np.uint64],
    seed: int,
    probability: float,
) -> npt.NDArray[np.bool_]:
    """[U] which units are masked: of each text, those with the lowest draws."""
    text, start = units.text[drawable], units.start[drawable]
    # Random rounding makes the expected share equal the probability for short texts too.
    rounding = uniform(seed, examples, np.zeros(len(examples), dtype=np.int64), _ROUND)
    numbers = (probability * np.bincount(text, minlength=len(examples)) + rounding).astype(np.int64)
    order = np.lexsort((uniform(seed, examples[text], start, _SELECT), text))
    rank = np.arange(len(order)) - np.searchsorted(text, text)
    selected = np.zeros(len(units.text), dtype=bool)
    selected[drawable[order[rank < numbers[text]]]] = True
    return selected


def _flat(
    first: Sequence[npt.NDArray[np.int64]], second: Sequence[npt.NDArray[np.int64]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(first and second of all texts in a row, the text of each of their entries)."""
    lengths = [len(part) for part in first]
    return np.concatenate(first), np.concatenate(second), np.repeat(np.arange(len(first)), lengths)


def _spread(text: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers that order characters by text, then by place."""
    return (text << _TEXT_BITS) + starts


def _mix(values: np.uint64 | npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    mixed = np.asarray(values, dtype=np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)


def masks_identity(masking: Masking) -> dict[str, object]:
    """The settings that determine the masks, for the identity of everything that depends on them."""
    return {**masking.model_dump(mode="json"), "version": MASKS_VERSION}


def evaluation_masks_identity(masking: Masking) -> dict[str, object]:
    """What determines the masks of an evaluation, beside its own share of masked units."""
    return {"unit": masking.unit, "version": MASKS_VERSION}


def mask_texts(
    texts: Sequence[str],
    ids: Sequence[int],
    tokenizer: LoadedTokenizer,
    *,
    max_length: int,
    masking: Masking,
    seed: int,
    beside: Sequence[LoadedTokenizer] = (),
) -> list[Masked]:
    """Tokenise and mask texts, in the tokenizer's ids.

    beside  the tokenizers of the other copies. Copies with the same ids and seed mask the same words if each
            gets the tokenizers of all others here
    """
    whole = encode(tokenizer, texts)
    others = zip(*(encode(other, texts) for other in beside), strict=True) if beside else [()] * len(texts)
    prepared = []
    for text, example, encoded, copies in zip(texts, ids, whole, others, strict=True):
        units, maskable = masking_units(text, [encoded, *copies])
        seen = encoded.cut(max_length)
        prepared.append(
            Maskable(seen.ids, np.where(seen.known, seen.starts, -1), units, maskable, int(example))
        )
    return mask(
        prepared,
        seed=seed,
        mask_id=tokenizer.special_ids["mask"],
        ordinary_ids=tokenizer.ordinary_ids,
        unit=masking.unit,
        probability=masking.probability,
        mask_share=masking.mask_share,
        random_share=masking.random_share,
    )
