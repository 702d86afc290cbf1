"""Shared by tests of fine-tuning: small files of every kind of task, and recipes that run in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

from polydistill.config.finetune import Task
from polydistill.tasks.encoding import Coder
from polydistill.tokenization.load import load_tokenizer

# The word decides its tag, class and so on: a head learns that in a few steps.
WORDS = {
    "en": {"A": "the of and in to", "B": "had was said with for", "C": "his that from they were"},
    "ru": {"A": "он на не что как", "B": "был его она так мне", "C": "по все от уже был"},
}
SMALL = {
    "learning_rate": 5e-3,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "bf16": False,
    "warmup_steps": 0.1,
}


def _draw(language: str, seed: int, number: int) -> list[list[tuple[str, str]]]:
    chosen = random.Random(f"{language}-{seed}")
    words = [(word, tag) for tag, some in WORDS[language].items() for word in some.split()]
    return [[chosen.choice(words) for _ in range(chosen.randint(3, 7))] for _ in range(number)]


def columns(path: Path, language: str, seed: int, number: int = 24) -> str:
    """Entities: a word with tag B or C begins one of its kind; the same tag on the next word continues it."""
    lines = []
    for sentence in _draw(language, seed, number):
        before = "A"
        for word, tag in sentence:
            kind = "I" if tag == before else "B"
            lines.append(f"{word}\t{'O' if tag == 'A' else f'{kind}-{tag}'}")
            before = tag
        lines.append("")
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


def treebank(path: Path, language: str, seed: int, number: int = 24) -> str:
    """Parts of speech."""
    blocks = [
        "".join(
            f"{place}\t{word}\t_\t{ {'A': 'NOUN', 'B': 'VERB', 'C': 'PRON'}[tag] }" + "\t_" * 6 + "\n"
            for place, (word, tag) in enumerate(sentence, 1)
        )
        for sentence in _draw(language, seed, number)
    ]
    path.write_text("\n".join(blocks) + "\n", "utf-8")
    return str(path)


def table(path: Path, language: str, seed: int, number: int = 24, *, pairs: bool = False) -> str:
    """Texts whose class is that of their first word; for pairs, whether both have the same."""
    rows = ["text\tpair\tlabel" if pairs else "text\tlabel"]
    for sentence, other in zip(
        _draw(language, seed, number), _draw(language, seed + 50, number), strict=True
    ):
        text, second = (" ".join(word for word, _ in some) for some in (sentence, other))
        same = "same" if sentence[0][1] == other[0][1] else "other"
        rows.append(f"{text}\t{second}\t{same}" if pairs else f"{text}\t{sentence[0][1]}")
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return str(path)


def choices(path: Path, language: str, seed: int, number: int = 24) -> str:
    """A premise, and two texts of which one begins with its first word."""
    rows = []
    for index, sentence in enumerate(_draw(language, seed, number)):
        words = [word for word, _ in sentence]
        both = [words[0], words[-1]]
        rows.append(
            {
                "premise": " ".join(words),
                "choice1": both[index % 2],
                "choice2": both[1 - index % 2],
                "label": index % 2,
            }
        )
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", "utf-8")
    return str(path)


def squad(path: Path, language: str, seed: int, number: int = 12) -> str:
    """The answer is the first word with tag B, or the last word."""
    paragraphs = []
    for index, sentence in enumerate(_draw(language, seed, number)):
        words = [word for word, _ in sentence]
        place = next((i for i, (_, tag) in enumerate(sentence) if tag == "B"), len(words) - 1)
        start = len(" ".join(words[:place])) + (place > 0)
        answer = {"text": words[place], "answer_start": start}
        paragraphs.append(
            {
                "context": " ".join(words),
                "qas": [{"id": f"q{index}", "question": words[0], "answers": [answer]}],
            }
        )
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}, ensure_ascii=False, indent=1), "utf-8")
    return str(path)


MAKERS = {
    "ner": (columns, "bio"),
    "pos": (treebank, "conllu"),
    "classification": (table, "tsv"),
    "choice": (choices, "jsonl"),
    "qa": (squad, "json"),
}


def task(folder: Path, kind: str, languages: tuple[str, ...] = ("en",), **more) -> dict:
    """A task of a kind with small files."""
    data = {}
    for language in languages:
        if kind == "pairs":
            data[language] = {
                split: table(folder / f"pairs-{language}-{split}.tsv", language, seed, pairs=True)
                for seed, split in enumerate(("train", "dev", "test"))
            }
            continue
        make, ending = MAKERS[kind]
        data[language] = {
            split: make(folder / f"{kind}-{language}-{split}.{ending}", language, seed)
            for seed, split in enumerate(("train", "dev", "test"))
        }
    return {"kind": kind, "data": data, "max_length": 32, **more}


def recipe_values(folder: Path, models: dict[str, Path | dict], tasks: dict, **more) -> dict:
    """A recipe of one seed that runs in seconds."""
    return {
        "recipe": "finetune",
        "name": "small",
        "output": str(folder / "run"),
        "num_seeds": 1,
        "models": {name: path if isinstance(path, dict) else str(path) for name, path in models.items()},
        "tasks": tasks,
        "training": dict(SMALL),
        "bootstrap_samples": 100,
        **more,
    }


def coder(kind: str, path, labels=(), max_length=32, segments=True, **more) -> Coder:
    """How a task of a kind reads text by a folder's tokenizer."""
    data = {"en": {"train": "x", "test": "x"}}
    settings = Task.model_validate({"kind": kind, "data": data, **more})
    return Coder(settings, load_tokenizer(str(path)), list(labels), max_length, segments)
