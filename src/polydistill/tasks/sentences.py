"""Test sentences: parallel ones in several languages, and pairs with scores of their similarity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.config.embed import EmbedRecipe, ParallelSentences, ScoredPairs, Sentences
from polydistill.config.finetune import Columns
from polydistill.corpora.lines import hash_text_file
from polydistill.corpora.sentences import check_file, cleaned
from polydistill.disk import Json, hash_text
from polydistill.errors import CorpusError
from polydistill.tasks.labelled import COMPRESSIONS, Row, read_table, whole_lines

# Fewer parallel sentences or pairs than this are no test.
FEWEST = 2


class Pairs(NamedTuple):
    """[N] pairs of sentences and their scores."""

    first: list[str]
    second: list[str]
    scores: npt.NDArray[np.float64]


class MeasuredSentences(NamedTuple):
    """What a recipe measures on.

    parallel  name → language → sentences, row i the same in all
    scored    name → pairs
    """

    parallel: dict[str, dict[str, list[str]]]
    scored: dict[str, Pairs]

    def hashes(self, settings: Sentences) -> set[int]:
        """Hashes of all sentences, as training text would have them."""
        lists = [texts for languages in self.parallel.values() for texts in languages.values()]
        lists += [texts for pairs in self.scored.values() for texts in (pairs.first, pairs.second)]
        made = (cleaned(text, settings) for texts in lists for text in texts)
        return {hash_text(text) for text in made if text is not None}


def read_measured(recipe: EmbedRecipe) -> MeasuredSentences:
    """The test sentences of a recipe; CorpusError, with file and line, for unusable ones."""
    place = "evaluation.retrieval"
    parallel = {
        name: read_parallel(settings, field=f"{place}.{name}")
        for name, settings in recipe.evaluation.retrieval.items()
    }
    scored = {
        name: read_scored(settings, field=f"evaluation.similarity.{name}")
        for name, settings in recipe.evaluation.similarity.items()
    }
    return MeasuredSentences(parallel, scored)


def measured_identity(recipe: EmbedRecipe) -> Json:
    """Settings and hashes of the files of a recipe's test sentences."""
    retrieval, similarity = recipe.evaluation.retrieval, recipe.evaluation.similarity
    return {
        "retrieval": {
            name: settings.model_dump(exclude={"files"})
            | {"files": _hashes(settings.files, f"evaluation.retrieval.{name}.files")}
            for name, settings in retrieval.items()
        },
        "similarity": {
            name: settings.model_dump(exclude={"path"})
            | _hashes({"path": settings.path}, f"evaluation.similarity.{name}")
            for name, settings in similarity.items()
        },
    }


def _hashes(files: Mapping[str, str], field: str) -> dict[str, str]:
    return {
        name: hash_text_file(check_file(Path(path).expanduser(), f"{field}.{name}"), f"{field}.{name}")
        for name, path in files.items()
    }


def read_parallel(settings: ParallelSentences, *, field: str) -> dict[str, list[str]]:
    """Language → sentences, of which row i is the same in all.

    Joined by `id`, the sentences are those that every file has, in the order of the first file.
    Raises CorpusError for files of different length without an `id`, repeated ids, and too few sentences.
    """
    read: dict[str, dict[str, str]] = {}
    for language, path in settings.files.items():
        place = f"{field}.files.{language}"
        read[language] = {}
        for key, text in _sentences(Path(path).expanduser(), settings, place):
            if key in read[language]:
                raise CorpusError(
                    place, path, f"has two rows with {settings.id} {key!r:.60}", "give another `id` column"
                )
            read[language][key] = text
    sizes = {language: len(texts) for language, texts in read.items()}
    if settings.id is None and len(set(sizes.values())) > 1:
        shown = ", ".join(f"{language} {size}" for language, size in sizes.items())
        raise CorpusError(
            f"{field}.files",
            None,
            f"have different numbers of sentences ({shown}), so row i is not the same in all",
            "name the column that joins them (`id`), or correct the files",
        )
    shared = [key for key in next(iter(read.values())) if all(key in texts for texts in read.values())]
    if len(shared) < FEWEST:
        raise CorpusError(
            f"{field}.files",
            None,
            f"share {len(shared)} sentences",
            "check `id`, and that they are the same sentences in several languages",
        )
    return {language: [texts[key] for key in shared] for language, texts in read.items()}


def _sentences(path: Path, settings: ParallelSentences, field: str) -> Iterator[tuple[str, str]]:
    """(what joins it, sentence) of each row."""
    check_file(path, field)
    if settings.id is None and _is_plain(path):
        for number, line in enumerate(whole_lines(path, field)):
            if not line.strip():
                raise CorpusError(
                    field, f"{path}, line {number + 1}", "is blank", "correct the files, line by line"
                )
            yield str(number), line.strip()
        return
    for number, row in enumerate(read_table(path, Columns(), field)):
        key = str(number) if settings.id is None else str(_value(row, settings.id, "id", field)).strip()
        yield key, _text(row, settings.text, "text", field)


def _is_plain(path: Path) -> bool:
    name = path.name
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return name.endswith(".txt")


def read_scored(settings: ScoredPairs, *, field: str) -> Pairs:
    """Pairs and their scores; CorpusError for a score that is not a number, and for too few pairs."""
    path = check_file(Path(settings.path).expanduser(), field)
    first, second, scores = [], [], []
    for row in read_table(path, Columns(), field):
        first.append(_text(row, settings.first, "first", field))
        second.append(_text(row, settings.second, "second", field))
        value = _value(row, settings.score, "score", field)
        try:
            score = float(str(value))
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise CorpusError(
                field, row.where, f"its score {value!r:.60} is not a number", "correct or remove the row"
            )
        scores.append(score)
    if len(first) < FEWEST:
        raise CorpusError(field, str(path), f"holds {len(first)} pairs", "check that it is the right file")
    return Pairs(first, second, np.array(scores))


def _value(row: Row, column: str, name: str, field: str) -> object:
    if column not in row.values:
        raise CorpusError(
            f"{field}.{name}",
            column,
            f"{row.where} has no such column (it has {', '.join(map(str, row.values))})",
            f"name the right one in `{name}`",
        )
    return row.values[column]


def _text(row: Row, column: str, name: str, field: str) -> str:
    value = _value(row, column, name, field)
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(
            f"{field}.{name}",
            column,
            f"{row.where} holds {value!r:.60} instead of a sentence",
            "correct or remove the row",
        )
    return value.strip()
