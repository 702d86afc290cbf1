"""The students of a grid on the same hidden words, where their vocabularies differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polydistill.config.shared import Evaluation, RunRecipe
from polydistill.disk import Json, fingerprint, hash_folder, read_json, write_json
from polydistill.evaluation.readers import text_files
from polydistill.evaluation.words import WORDS_VERSION, corpora_prints, measure_words, student_corpora
from polydistill.pipelines.run_folder import Run
from polydistill.reports.grid_page import NATS

# The artefact, in the grid's folder.
WORDS = "words"
HELD_OUT, ALL = "held_out", "all languages"
Counts = npt.NDArray[np.float64]


def word_rows(run: Run, children: Mapping[str, RunRecipe]) -> list[Json]:
    """One row for each language and text of every student with rivals of the same text and other
    vocabularies, and `words/arrays.npz` with [E, 2] nats and characters of each example.

    Only runs of the same corpora hide the same words, hence of one seed.
    """
    groups = _groups(children)
    if not groups:
        return []
    settings = {names[0]: _settings(children[names[0]]) for names in groups}
    inputs = {
        "stage": WORDS,
        "version": WORDS_VERSION,
        "groups": [
            {
                "students": {name: _student(children[name].folder) for name in names},
                "corpora": corpora_prints(student_corpora(children[names[0]].folder)),
                "settings": settings[names[0]].model_dump(mode="json"),
            }
            for names in groups
        ],
    }

    def write(folder: Path) -> None:
        arrays: dict[str, Counts] = {}
        rows: list[Json] = []
        for names in groups:
            run.say(f"likelihood of the same hidden words: {', '.join(names)}")
            _measure(names, children, settings[names[0]], arrays, rows)
        np.savez_compressed(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
        write_json(folder / "rows.json", {"rows": rows})

    made = run.make(WORDS, inputs, write)
    return list(read_json(made.path / "rows.json")["rows"])


def _measure(
    names: list[str],
    children: Mapping[str, RunRecipe],
    settings: Evaluation,
    arrays: dict[str, Counts],
    rows: list[Json],
) -> None:
    """Measure a group's students on every text, and on the held-out texts of all languages together."""
    folders = [children[name].folder for name in names]
    held_out: dict[str, list[Counts]] = {}
    for language, corpus in student_corpora(folders[0]).items():
        for text, examples in text_files(corpus).items():
            measured = measure_words(folders, language, examples, settings)
            for name, words in zip(names, measured, strict=True):
                counts = np.stack([words.nats, words.characters.astype(np.float64)], 1)
                arrays[array_of(name, language, text)] = counts
                rows.append(_row(name, language, text, counts))
                if text == HELD_OUT:
                    held_out.setdefault(name, []).append(counts)
    for name, each in held_out.items():
        if len(each) > 1:
            counts = arrays[array_of(name, ALL, HELD_OUT)] = np.concatenate(each)
            rows.append(_row(name, ALL, HELD_OUT, counts))


def array_of(run: str, language: str, text: str) -> str:
    """The name of a row's array, [E, 2]: nats and characters of each example."""
    return f"{run}/{language}/{text}"


def _row(name: str, language: str, text: str, counts: Counts) -> Json:
    return {
        "run": name,
        "place": f"{language}, {text}",
        "language": language,
        "text": text,
        "model": "student",
        "tokenizer": "same words",
        "teacher": None,
        "measure": NATS,
        "value": float(counts[:, 0].sum() / counts[:, 1].sum()),
        "error": None,
        "examples": len(counts),
    }


def _groups(children: Mapping[str, RunRecipe]) -> list[list[str]]:
    """Names of runs with the same corpora, where at least two have different vocabularies."""
    alike: dict[str, list[str]] = {}
    for name, child in children.items():
        corpora = student_corpora(child.folder)
        if corpora:
            alike.setdefault(fingerprint(corpora_prints(corpora)), []).append(name)
    return [
        names
        for names in alike.values()
        if len({hash_folder(_final(children[name].folder), pattern="tokenizer.json") for name in names}) > 1
    ]


def _final(folder: Path) -> Path:
    return folder / "student" / "final"


def _student(folder: Path) -> str:
    """The fingerprint of a student's weights and tokenizers."""
    final = _final(folder)
    return fingerprint(
        [hash_folder(final, pattern=pattern) for pattern in ("*.safetensors", "tokenizer.json")]
    )


def _settings(child: RunRecipe) -> Evaluation:
    settings = getattr(child, "evaluation", None)
    return settings if isinstance(settings, Evaluation) else Evaluation()
