"""A union of published vocabularies, cut by text: pieces, seconds, tokens a word.

python -m benchmarks.union_cut [LINES]; reads the data at POLYDISTILL_SHARED and prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer

from benchmarks.trim import SHARED, load, spread
from benchmarks.vocab import EIGHT
from polydistill.tokenization.selection import document_frequency, select
from polydistill.tokenization.student import union_tokenizer
from polydistill.tokenization.union import unite

# The languages of a vocabulary that has not all of them.
OF_ONE = {
    "koelectra-ko": ["ko"],
    "beto-cased-es": ["es"],
    "alephbert-he": ["he"],
    "distilbert-jp": [],
    "ernie3-zh-40k": ["zh"],
}
SHARES = (None, 0.0005, 0.001)
# One line of this many is held out.
HELD_OUT = 20


def run(num_lines: int = 6000) -> dict[str, Any]:
    """The whole union and three cut ones; `words`: language → tokens a word, tokens a character, unknown."""
    corpora = SHARED / "data" / "corpora"
    lines = {path.name[:2]: spread(path, num_lines) for path in sorted(corpora.glob("*.txt.xz"))}
    held_out = {language: each[::HELD_OUT] for language, each in lines.items()}
    text = {
        language: [line for index, line in enumerate(each) if index % HELD_OUT]
        for language, each in lines.items()
    }
    teachers = [load(name) for name in EIGHT]
    started = time.perf_counter()
    frequencies = [
        {
            language: document_frequency(teacher.backend, text[language], teacher.size)
            for language in OF_ONE.get(teacher.name, list(text))
        }
        for teacher in teachers
    ]
    counted = time.perf_counter() - started
    whole = unite(teachers)
    rows = [
        {"share": "whole", "pieces": whole.size, "words": words(union_tokenizer(whole, teachers), held_out)}
    ]
    for share in SHARES:
        started = time.perf_counter()
        views = []
        for teacher, of_teacher in zip(teachers, frequencies, strict=True):
            kept = set(select(teacher, of_teacher, min_document_share=share).kept.tolist())
            pieces = [piece if index in kept else None for index, piece in enumerate(teacher.pieces)]
            views.append(SimpleNamespace(pieces=pieces, special_ids=teacher.special_ids))
        cut = unite(views)
        tokenizer = union_tokenizer(cut, teachers)
        seconds = round(time.perf_counter() - started, 1)
        rows.append(
            {"share": share, "pieces": cut.size, "seconds": seconds, "words": words(tokenizer, held_out)}
        )
    return {"seconds of counting": round(counted, 1), "unions": rows}


def words(tokenizer: Tokenizer, texts: dict[str, list[str]]) -> dict[str, list[float]]:
    """Language → tokens a word, tokens a character, share of unknown tokens."""
    found = {}
    for language, lines in texts.items():
        encodings = tokenizer.encode_batch(lines, add_special_tokens=False)
        tokens = sum(map(len, encodings))
        unknown = sum(encoding.tokens.count("[UNK]") for encoding in encodings)
        separate, characters = sum(len(line.split()) for line in lines), sum(map(len, lines))
        found[language] = [tokens / separate, tokens / characters, unknown / tokens]
    return found


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=1))
