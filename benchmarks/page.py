"""Writes docs/performance.md from the benchmarks' results."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import Any

# Characters in a line of the page.
WIDTH = 118
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

HEAD = """# Performance

Written by `python -m benchmarks` from its measurements; do not edit. Every figure is a median over rounds
in which ours and its peers took turns on one machine, in fresh processes where memory is compared. The
machines are shared: rely on the ratios.
"""


# Benchmark → heading, and what a reader must know to read its figures.
ABOUT = {
    "step": (
        "A training step beside Trainer and TextBrewer",
        "One student, the same number of random tokens, each library's own loop from its data loader to its "
        "optimizer. `ours` learns from stored top-8 predictions and gold labels, `ours-gold` from gold "
        "labels alone; `trainer-teacher` is `transformers.Trainer` with the teacher in the loop as "
        "DistilBERT's recipe has it, `trainer-plain` the same without a teacher, `textbrewer` its "
        "`GeneralDistiller`. `times faster` is how many times ours, bfloat16, it takes. The share of peak "
        "counts what must be computed, the encoder at all tokens and the output layer at masked ones, "
        "against the machine's largest measured matrix product in bfloat16. Memory is the process' peak.",
    ),
    "sooner": (
        "Seconds to a quality",
        "The demo's recipes as they were before 2026-11-28 (15 % masked, random weights, batches of 32) and "
        "as they are now, in runs of three lengths. Seconds are those of all stages up to the model: text, "
        "vocabulary, scoring and training. Loss and MRR are of held-out text, 15 % masked. `times sooner` is "
        "the seconds of before over the seconds at which runs of now have its loss, between two of them.",
    ),
    "parts": (
        "A step that holds texts of all lengths",
        "The same twelve micro-batches, padded whole or cut into parts of similar lengths: forward, backward "
        "and optimizer. `overhead` is the assumed cost of one more part, in padded tokens. `steps of one "
        "length` has the least padding, but tokens of short texts weigh several times more than others.",
    ),
    "scoring": (
        "Scoring beside the teacher's forward passes and a script",
        "The same masked sequences, from token ids to a shard on disk. `naive` is what a script does: logits "
        "everywhere, log-softmax, topk, lists, `save_to_disk`. `bare encoder` computes no logits, and "
        "`encoder and logits everywhere` keeps nothing. `over X` is ours in bfloat16 (over the encoder, in "
        "the same number type) as a multiple of X's speed.",
    ),
    "ray": (
        "Scoring on Ray",
        "The same texts with the same teacher, from texts to a store on disk, on the local engine and on "
        "Ray. Ray's workers are already running and compute with one thread each. `bytes equal` compares "
        "the stores.",
    ),
    "scale": (
        "A corpus that grows",
        "Preparing, scoring and training with a tiny teacher and student at 1 and 10 times the text, each "
        "size in a fresh process. Compare the peaks of a stage's first and last half to see whether its "
        "memory still grows.",
    ),
    "prepare": (
        "Preparing text",
        "Text is read, cleaned, compared for repeats, split, counted by a WordPiece of 16,000 pieces and "
        "packed. The bare tokenizer counts the same lines with as many threads, and nothing else. Memory is "
        "what all processes take beside shared pages, over lines of shuffled words. The model puts the "
        "measured processor seconds into 104 languages of Zipf sizes, one corpus after the other.",
    ),
    "vocab": (
        "Vocabulary algebra",
        "Published vocabularies: the union of eight with every map, and a trim of the largest, whole and in "
        "parts.",
    ),
    "trim": (
        "Trimming published vocabularies",
        "What stays of a vocabulary trimmed to text of one language, measured on held-out lines.",
    ),
}


def write_page() -> Path:
    """Write the page from all results here. Sections of other benchmarks, measured elsewhere, stay on it."""
    kept = {}
    if PAGE.is_file():
        for section in PAGE.read_text("utf-8").split("\n## ")[1:]:
            title, _, body = section.partition("\n")
            kept[title] = f"## {title}\n{body.rstrip()}\n"
    made: dict[str, str] = {}
    order = list(ABOUT)
    for path in sorted(RESULTS.glob("*.json"), key=lambda p: (order.index(p.stem.partition("-")[0]), p.stem)):
        measured = json.loads(path.read_text("utf-8"))
        where = measured["where"]
        bench, _, variant = path.stem.partition("-")
        heading, about = ABOUT[bench]
        title = f"{heading}{f' ({variant})' if variant else ''}"
        how = (
            f"`python -m benchmarks {measured['command']}`, {measured['date']}: {where['cores']} cores, "
            f"{where['processor']}, {where['gpu'] or 'no GPU'}, torch {where['torch']}."
        )
        parts = [f"## {title}\n\n{fill(about, WIDTH)}\n\n{fill(how, WIDTH)}\n"]
        made[title] = "\n".join(parts + _tables(measured["measured"]))
    headings = [heading for heading, _ in ABOUT.values()]
    sections = kept | made
    places = {
        title: next((place for place, heading in enumerate(headings) if title.startswith(heading)), 99)
        for title in sections
    }
    PAGE.write_text(
        "\n".join([HEAD, *(sections[title] for title in sorted(sections, key=lambda t: (places[t], t)))]),
        "utf-8",
    )
    return PAGE


def _tables(measured: dict[str, Any] | list[dict[str, Any]]) -> list[str]:
    """Measurements as Markdown: a list of rows is one table. In a dictionary, single values are facts.

    Dictionaries with the same keys are columns of one table; each other dictionary is a table of its own.
    """
    if isinstance(measured, list):
        columns = list(measured[0])
        lines = ["| " + " | ".join(map(_name, columns)) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(_value(row[column]) for column in columns) + " |" for row in measured]
        return ["\n".join(lines) + "\n"]
    facts = [
        fill(f"- {_name(key)}: {_value(value)}", WIDTH, subsequent_indent="  ")
        for key, value in measured.items()
        if not isinstance(value, dict)
    ]
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for key, value in measured.items():
        if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            columns = {
                name: {row: value[row].get(name) for row in value} for row in value for name in value[row]
            }
            groups[(key,)] = columns
        elif isinstance(value, dict):
            groups.setdefault(tuple(value), {})[key] = value
    tables = []
    for columns in groups.values():
        rows = list(next(iter(columns.values())))
        lines = ["| | " + " | ".join(map(_name, columns)) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [
            f"| {_name(row)} | " + " | ".join(_value(values[row]) for values in columns.values()) + " |"
            for row in rows
        ]
        tables.append("\n".join(lines) + "\n")
    return (["\n".join(facts) + "\n"] if facts else []) + tables


def _name(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
