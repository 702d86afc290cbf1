"""Vocabulary algebra on published vocabularies: seconds, and their growth when the vocabularies double.

python -m benchmarks vocab; reads the data at POLYDISTILL_SHARED.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.measure import alternate
from benchmarks.trim import SHARED, load, spread
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import Piece
from polydistill.tokenization.selection import document_frequency, select
from polydistill.tokenization.student import language_tokenizer, union_tokenizer
from polydistill.tokenization.trim import trim_tokenizer
from polydistill.tokenization.union import unite

EIGHT = (
    "mbert-cased",
    "labse-15lang-173k",
    "multilingual-e5-small",
    "koelectra-ko",
    "beto-cased-es",
    "alephbert-he",
    "distilbert-jp",
    "ernie3-zh-40k",
)
LARGEST = "labse-cased-501k"
FRACTIONS = (4, 2, 1)
LINES = 5000


@dataclass(frozen=True)
class Part:
    """The first pieces of a vocabulary: the part of a tokenizer that `unite` needs."""

    pieces: list[Piece | None]
    special_ids: dict[str, int]


def run(rounds: str = "5") -> dict[str, Any]:
    """Medians of the union's and the trim's steps at a quarter, a half and the whole of the vocabularies."""
    if not (SHARED / "vocabularies").is_dir():
        return {"skipped": f"{SHARED} holds no vocabularies: set POLYDISTILL_SHARED"}
    teachers = [load(name) for name in EIGHT]
    things: dict[str, Any] = {
        "read the eight tokenizers' pieces": lambda: [_fresh(teacher).pieces for teacher in teachers]
    }
    unions = {}
    for fraction in FRACTIONS:
        parts = [_part(teacher, fraction) for teacher in teachers]
        unions[fraction] = unite(parts)
        things[f"union and maps, 1/{fraction}"] = partial(unite, parts)
    whole = unions[1]
    things["build the union's tokenizer"] = lambda: union_tokenizer(whole, teachers)
    things["build the eight languages' tokenizers"] = lambda: [
        language_tokenizer(teacher, mapping, whole)
        for teacher, mapping in zip(teachers, whole.maps, strict=True)
    ]
    lines = spread(SHARED / "data" / "corpora" / "fr.txt.xz", LINES)
    for fraction in FRACTIONS:
        largest = load(LARGEST, fraction)
        frequency = document_frequency(largest.backend, lines, largest.size)
        things[f"trim {LARGEST} to French, 1/{fraction}"] = partial(_trim, largest, frequency)
    seconds = alternate(things, rounds=int(rounds))
    grown = {
        name: {
            "of all ids": sizes[0],
            "seconds": round(seconds[f"{name}, 1/1"], 3),
            "half the ids": round(seconds[f"{name}, 1/2"], 3),
            "a quarter": round(seconds[f"{name}, 1/4"], 3),
            "growth when doubled": round(seconds[f"{name}, 1/1"] / seconds[f"{name}, 1/2"], 2),
        }
        for name, *sizes in (
            ("union and maps", sum(teacher.size for teacher in teachers)),
            (f"trim {LARGEST} to French", largest.size),
        )
    }
    return {
        "vocabularies": ", ".join(EIGHT),
        "ids of the union": unions[1].size,
        "seconds": {
            step: round(seconds[step], 3)
            for step in (
                "read the eight tokenizers' pieces",
                "build the union's tokenizer",
                "build the eight languages' tokenizers",
            )
        },
        "growth": grown,
    }


def _fresh(teacher: LoadedTokenizer) -> LoadedTokenizer:
    """The same tokenizer with nothing computed yet."""
    return LoadedTokenizer(teacher.name, teacher.backend, teacher.special_ids, teacher.max_length)


def _part(teacher: LoadedTokenizer, fraction: int) -> Part:
    size = teacher.size // fraction
    # A special token beyond the part, such as XLM-R's mask, keeps its role at the last id.
    special = {role: min(index, size - 1) for role, index in teacher.special_ids.items()}
    return Part(teacher.pieces[:size], special)


def _trim(tokenizer: LoadedTokenizer, frequency: Any) -> LoadedTokenizer:
    fresh = _fresh(tokenizer)
    return trim_tokenizer(fresh, select(fresh, {"fr": frequency}))
