"""Near-repeats: documents that share most of their words' sequences, found by MinHash (Broder 1997).

A document's signature is cut into bands; documents with a band in common are taken for near-repeats. With b
bands of r values, two documents of Jaccard similarity s share one with probability 1 - (1 - s^r)^b (Leskovec
et al., Mining of Massive Datasets, section 3.4), which rises most steeply at about (1/b)^(1/r).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polydistill.disk import hash_text

# Other values find other repeats: a change of these is a new `packing.PACKING_VERSION`.
NUM_HASHES, SEED = 112, 0x5EED
# Words, or characters where words are long: Chinese has no blanks.
WORDS, CHARACTERS, LONGEST_WORD = 5, 10, 16


def bands_for(similarity: float) -> tuple[int, int]:
    """(bands, values in a band) whose steepest point is nearest to a similarity."""
    choices = [(NUM_HASHES // rows, rows) for rows in range(1, NUM_HASHES + 1)]
    return min(choices, key=lambda choice: abs((1 / choice[0]) ** (1 / choice[1]) - similarity))


def band_hashes(lines: Sequence[str], bands: int, rows: int) -> npt.NDArray[np.uint64]:
    """[bands] hashes of the bands of a document's signature, different in each band."""
    values = _hashes(_shingles(" ".join(lines)))
    multipliers, offsets = _functions(bands * rows)
    # Multiplication and addition wrap around 2^64; the high bits are the hash (Dietzfelbinger et al. 1997).
    signature = np.full(bands * rows, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(values), 4096):
        hashed = values[start : start + 4096, None] * multipliers + offsets
        signature = np.minimum(signature, (hashed >> np.uint64(32)).min(axis=0))
    parted = signature.reshape(bands, rows)
    return np.array(
        [hash_text(f"{band} {row.tobytes().hex()}") for band, row in enumerate(parted)], np.uint64
    )


def _shingles(text: str) -> set[str]:
    words = text.lower().split()
    if words and len(text) > LONGEST_WORD * len(words):
        joined = "".join(words)
        return {joined[place : place + CHARACTERS] for place in range(max(1, len(joined) - CHARACTERS + 1))}
    return {" ".join(words[place : place + WORDS]) for place in range(max(1, len(words) - WORDS + 1))}


def _hashes(shingles: set[str]) -> npt.NDArray[np.uint64]:
    return np.array(sorted(map(hash_text, shingles)), dtype=np.uint64)


def _functions(number: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Odd multipliers and offsets of hash functions, the same in every process."""
    draw = np.random.default_rng(SEED)
    multipliers = draw.integers(0, 2**63, number, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return multipliers, draw.integers(0, 2**63, number, dtype=np.uint64)
