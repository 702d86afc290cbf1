"""The students of a grid on the same hidden words, where their vocabularies differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polydistill.config.shared import Evaluation, RunRecipe
from polydistill.disk import Json, fingerprint, hash_folder
from polydistill.evaluation.readers import text_files
from polydistill.evaluation.words import WORDS_VERSION, corpora_prints, measure_words, student_corpora
from polydistill.pipelines.run_folder import Run
from polydistill.reports.grid_page import NATS

# The artefact, in the grid's folder.
WORDS, ARRAYS = "words", "arrays.npz"
HELD_OUT, ALL = "held_out", "all languages"
Counts = npt.NDArray[np.float64]


def word_rows(run: Run, children: Mapping[str, RunRecipe]) -> list[Json]:
    """One row for each language and text of every student with rivals of the same text and other
    vocabularies, and one for the held-out texts of all languages together.

    `words/arrays.npz` has, for each row, [E, 2] nats and characters of each example: see `array_of`. Runs of
    the same corpora hide the same words, whatever their seeds.
    """
    groups = _groups(children)
    if not groups:
        return []
    settings = [_settings(children[names[0]]) for names in groups]
    inputs = {
        "stage": WORDS,
        "version": WORDS_VERSION,
        "groups": [
            {
                "students": {name: _student(children[name].folder) for name in names},
                "corpora": corpora_prints(student_corpora(children[names[0]].folder)),
                "settings": of_group.model_dump(mode="json"),
            }
            for names, of_group in zip(groups, settings, strict=True)
        ],
    }

    def write(folder: Path) -> None:
        arrays: dict[str, Counts] = {}
        for names, of_group in zip(groups, settings, strict=True):
            run.say(f"likelihood of the same hidden words: {', '.join(names)}")
            arrays |= _measure(names, children, of_group)
        np.savez_compressed(folder / ARRAYS, **arrays)  # type: ignore[arg-type]

    made = run.make(WORDS, inputs, write)
    with np.load(made.path / ARRAYS, allow_pickle=False) as arrays:
        return [_row(name, arrays[name]) for name in arrays.files]


def _measure(names: list[str], children: Mapping[str, RunRecipe], settings: Evaluation) -> dict[str, Counts]:
    """A group's students on every text that has a word to hide, and on all held-out texts together."""
    folders = [children[name].folder for name in names]
    arrays: dict[str, Counts] = {}
    held_out: dict[str, list[Counts]] = {}
    for language, corpus in student_corpora(folders[0]).items():
        for text, examples in text_files(corpus).items():
            for name, words in zip(names, measure_words(folders, language, examples, settings), strict=True):
                if not words.characters.any():
                    continue
                counts = np.stack([words.nats, words.characters.astype(np.float64)], 1)
                arrays[array_of(name, language, text)] = counts
                if text == HELD_OUT:
                    held_out.setdefault(name, []).append(counts)
    together = {
        array_of(name, ALL, HELD_OUT): np.concatenate(each)
        for name, each in held_out.items()
        if len(each) > 1
    }
    return arrays | together


def array_of(run: str, language: str, text: str) -> str:
    """The name of a row's array; names of runs, languages and texts have no slash."""
    return f"{run}/{language}/{text}"


def _row(array: str, counts: Counts) -> Json:
    run, language, text = array.split("/")
    return {
        "run": run,
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
