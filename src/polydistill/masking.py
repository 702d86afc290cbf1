"""Which positions are masked: a function of the seed alone.

A unit (a word, or a token) is identified by the character where it starts, so that two tokenizers' copies of
a text mask the same words. Draws come from a hash of (seed, example, unit): stateless, in any order, on any
machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


def uniform(seed: int, example: int, keys: npt.NDArray[np.int64], stream: int) -> npt.NDArray[np.float64]:
    """[N] numbers in [0, 1), one per key: SplitMix64 (Steele, Lea and Flood 2014) of all arguments."""
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream))
        state = _mix(state ^ np.uint64(example))
        mixed = _mix(state + keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def mask(
    ids: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    words: npt.NDArray[np.int64],
    *,
    example: int,
    seed: int,
    mask_id: int,
    ordinary_ids: npt.NDArray[np.int64],
    maskable: npt.NDArray[np.bool_] | None = None,
    unit: Unit = "words",
    probability: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> Masked:
    """Mask a text: `mask_share` of the selected units become the mask token, `random_share` random pieces.

    ids, starts   [L] tokens and the characters where they start, -1 for tokens that are never masked
    words         [W] the characters where the text's words start, ascending
    maskable      [W] which of them may be drawn; by default all
    example       the example's id: together with `seed` it determines all draws
    ordinary_ids  ids that random tokens are drawn from
    The expected share of masked units is `probability` for a text of any length: a text of one word is masked
    in that share of its draws, and has no masked position in the others.
    """
    where = np.flatnonzero(starts >= 0)
    if not len(where):
        return Masked(ids.copy(), where, ids[where])
    if unit == "words":
        # A token belongs to the word that contains its first character. All words of the text are in the
        # draw, those after the cut too: so the choice does not depend on the tokenizer.
        keys = words[np.maximum(np.searchsorted(words, starts[where], side="right") - 1, 0)]
        units = words if maskable is None else words[maskable]
    else:
        keys = starts[where]
        units = np.unique(keys)
    # Random rounding makes the expected share equal the probability for short texts too.
    number = int(probability * len(units) + uniform(seed, example, np.zeros(1, dtype=np.int64), _ROUND)[0])
    order = np.argsort(uniform(seed, example, units, _SELECT), kind="stable")
    hit = np.isin(keys, units[order[:number]])
    positions, keys = where[hit], keys[hit]
    action = uniform(seed, example, keys, _ACTION)
    draws = uniform(seed, example, positions, _PIECE)
    pieces = ordinary_ids[(draws * len(ordinary_ids)).astype(np.int64)]
    masked = ids.copy()
    masked[positions] = np.where(
        action < mask_share, mask_id, np.where(action < mask_share + random_share, pieces, ids[positions])
    )
    return Masked(masked, positions, ids[positions])


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
    masked = []
    for text, example, encoded, copies in zip(texts, ids, whole, others, strict=True):
        units, maskable = masking_units(text, [encoded, *copies])
        seen = encoded.cut(max_length)
        masked.append(
            mask(
                seen.ids,
                np.where(seen.known, seen.starts, -1),
                units,
                maskable=maskable,
                example=example,
                seed=seed,
                mask_id=tokenizer.special_ids["mask"],
                ordinary_ids=tokenizer.ordinary_ids,
                unit=masking.unit,
                probability=masking.probability,
                mask_share=masking.mask_share,
                random_share=masking.random_share,
            )
        )
    return masked
