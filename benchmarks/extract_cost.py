"""What an extracted student costs beside mBERT: Eliquare's table 3, at mBERT's own sizes.

Random weights: cost does not depend on them. `python -m benchmarks.extract_cost [ROUNDS]` prints JSON. It
takes most of an hour in one thread, so `make bench` leaves it out.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig

from polydistill.evaluation.cost import describe, measure_in_turns
from polydistill.models.student import build_student

# The paper's batch and length.
SHAPE = (32, 512)
# Rows of the student's vocabulary: with half of mBERT's layers they make the paper's 66 M parameters.
ROWS = 30_000
# (name, pieces, layers, width, heads, token types).
MODELS = (
    ("mBERT", 119_547, 12, 768, 12, 2),
    ("6 x 768, trimmed", ROWS, 6, 768, 12, 1),
    ("6 x 512, trimmed", ROWS, 6, 512, 8, 1),
    ("6 x 384, trimmed", ROWS, 6, 384, 12, 1),
)


def run(rounds: str = "2") -> dict[str, Any]:
    """Seconds of the processor and peak memory of each model, in one thread.

    rounds  fresh processes for each figure
    """
    with tempfile.TemporaryDirectory() as root:
        names = {str(Path(root) / name.replace(" ", "")): name for name, *_ in MODELS}
        for folder, (_, *sizes) in zip(names, MODELS, strict=True):
            _write(Path(folder), *sizes)
        facts = {folder: describe(folder) for folder in names}
        rows = measure_in_turns(
            facts,
            shapes=[SHAPE],
            rounds=int(rounds),
            calls=1,
            threads=1,
            loading={folder: {"clock": "processor"} for folder in names},
            names=names,
            say=print,
        )
    return {
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "rounds": int(rounds),
        "rows": [row | {"model": names[row["model"]]} for row in rows],
    }


def _write(folder: Path, rows: int, layers: int, width: int, heads: int, token_types: int) -> None:
    config = BertConfig(
        vocab_size=rows,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        type_vocab_size=token_types,
    )
    build_student(config, seed=0).save_pretrained(folder)


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:]), indent=2))
