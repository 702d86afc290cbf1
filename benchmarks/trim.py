"""Published vocabularies trimmed to real text of one language: what stays, and the effect on held-out lines.

python -m benchmarks trim [LANGUAGES LINES], such as `tr,sw 20000`; reads the data at POLYDISTILL_SHARED.
"""

from __future__ import annotations

import lzma
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import BertTokenizer

from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import STUDENT_SPECIALS
from polydistill.tokenization.scripts import script_shares, written_scripts
from polydistill.tokenization.selection import Entries, document_frequency, select
from polydistill.tokenization.trim import compare_trimmed, trim_tokenizer

SHARED = Path(os.environ.get("POLYDISTILL_SHARED", "../shared"))
# Vocabulary → width of its model's embeddings.
WIDTHS = {"mbert-cased": 768, "labse-cased-501k": 768, "multilingual-e5-small": 384}
# (least share of lines, whether characters of scripts that the text does not write go)
CHOICES = ((None, False), (None, True), (0.001, False))
# One line in APART is held out.
APART = 20


def run(languages: str = "fr,hi,ko,sw,zh", num_lines: str = "20000") -> dict[str, Any]:
    """Trim each vocabulary to each language: keep pieces that occur once, or in a share of lines."""
    if not (SHARED / "vocabularies").is_dir():
        return {"skipped": f"{SHARED} holds no vocabularies: set POLYDISTILL_SHARED"}
    rows: list[dict[str, Any]] = []
    for name, width in WIDTHS.items():
        tokenizer = load(name)
        for language in languages.split(","):
            lines = spread(SHARED / "data" / "corpora" / f"{language}.txt.xz", int(num_lines))
            rows += [
                {"vocabulary": name, "language": language} | row for row in measure(tokenizer, lines, width)
            ]
            print(*rows[-len(CHOICES) :], sep="\n", flush=True)
    return {"lines": int(num_lines), "rows": rows}


def load(name: str, fraction: int = 1) -> LoadedTokenizer:
    """A published vocabulary as its model's tokenizer; of a WordPiece, the first 1 / fraction of its ids."""
    unigram = SHARED / "vocabularies" / f"{name}.tokenizer.json.xz"
    if unigram.is_file():
        backend = Tokenizer.from_str(lzma.decompress(unigram.read_bytes()).decode())
        roles = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    else:
        path = SHARED / "vocabularies" / f"{name}.txt.xz"
        with lzma.open(path, "rt", encoding="utf-8", newline="\n") as handle:
            pieces = [line.rstrip("\n") for line in handle]
        vocabulary = {piece: index for index, piece in enumerate(pieces[: len(pieces) // fraction])}
        backend = BertTokenizer(vocab=vocabulary, do_lower_case=False).backend_tokenizer
        roles = STUDENT_SPECIALS
    return LoadedTokenizer(name, backend, {role: backend.token_to_id(s) for role, s in roles.items()}, 512)


def spread(path: Path, number: int) -> list[str]:
    """At most `number` lines, spread over the whole file: its sources follow one another."""
    with lzma.open(path, "rt", encoding="utf-8") as handle:
        lines = [line.strip() for line in handle]
    return [lines[index] for index in np.linspace(0, len(lines) - 1, min(number, len(lines))).astype(int)]


def measure(tokenizer: LoadedTokenizer, lines: list[str], width: int) -> list[dict[str, Any]]:
    """One row of figures for each choice."""
    apart = lines[::APART]
    known = [line for index, line in enumerate(lines) if index % APART]
    frequency = document_frequency(tokenizer.backend, known, tokenizer.size)
    idle = sum(int(frequency.counts[index]) == 0 for index in Entries(tokenizer).characters)
    rows = []
    characters: Counter[str] = Counter()
    for line in known:
        characters.update(line)
    written = written_scripts([script_shares(characters)])
    for share, dropped in CHOICES:
        scripts = written if dropped else None
        selection = select(tokenizer, {"x": frequency}, min_document_share=share, scripts=scripts)
        measured, _, differing = compare_trimmed(
            tokenizer, trim_tokenizer(tokenizer, selection).backend, selection, apart
        )
        rows.append(
            {
                "min_document_share": share,
                "drop_scripts": dropped,
                "dropped": {script: len(ids) for script, ids in selection.dropped.items()},
                "pieces": tokenizer.size,
                "kept": len(selection.kept),
                **selection.reasons,
                "idle_characters": idle,
                "idle_megabytes": round(idle * width * 4 / 1e6, 1),
                **measured.as_dict(),
                "differing": len(differing),
                "holds": measured.holds,
            }
        )
    return rows
