"""Questions with answers in a text: SQuAD's JSON, and the position of answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

from polydistill.corpora.lines import MAX_TASK_BYTES, read_lines
from polydistill.errors import CorpusError


class Answer(NamedTuple):
    """An answer's text, and the character of the context where it should start."""

    start: int
    text: str


@dataclass(frozen=True)
class Question:
    """A question, the text with its answer, and all accepted answers."""

    name: str
    question: str
    context: str
    answers: tuple[Answer, ...]


def locate(question: Question) -> tuple[int, int] | None:
    """(first character, end character) of the first answer that the context contains; None if there is none.

    If an answer is not at its stated start, the nearest occurrence counts. The end is exclusive.
    """
    for start, text in question.answers:
        if not text:
            continue
        if question.context.startswith(text, start) and start >= 0:
            return start, start + len(text)
        positions = _occurrences(question.context, text)
        if positions:
            nearest = min(positions, key=lambda position: (abs(position - start), position))
            return nearest, nearest + len(text)
    return None


def answer_faults(questions: Sequence[Question]) -> dict[str, int]:
    """Number of questions by fault; only faults that occur.

    `without`: no answer; `absent`: none in the context; `misplaced`: none at its stated start.
    """
    faults: Counter[str] = Counter()
    for question in questions:
        answers = [answer for answer in question.answers if answer.text]
        if not answers:
            faults["without"] += 1
        elif locate(question) is None:
            faults["absent"] += 1
        elif not any(
            answer.start >= 0 and question.context.startswith(answer.text, answer.start) for answer in answers
        ):
            faults["misplaced"] += 1
    return dict(sorted(faults.items()))


def read_squad(path: Path, *, field: str) -> list[Question]:
    """The questions of a file in SQuAD's format: data → paragraphs (context) → qas (question, answers).

    Raises CorpusError, with the line of damaged JSON or the path of a missing part.
    """
    dropped: Counter[str] = Counter()
    text = "\n".join(read_lines(path, dropped, field=field, whole=True, most=MAX_TASK_BYTES))
    if dropped:
        raise CorpusError(
            field, str(path), "has lines that are not UTF-8, or too long", "correct or convert it"
        )
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(
            field,
            f"{path}, line {error.lineno}",
            f"is not JSON ({error.msg})",
            "give a file in SQuAD's format",
        ) from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists nested too deeply
        raise CorpusError(
            field, str(path), f"is not JSON ({error})", "give a file in SQuAD's format"
        ) from None
    questions = []
    articles = _part(whole, "data", list, str(path), field)
    for a, article in enumerate(articles):
        where = f"{path}, data[{a}]"
        for p, paragraph in enumerate(_part(article, "paragraphs", list, where, field)):
            place = f"{where}.paragraphs[{p}]"
            context = _part(paragraph, "context", str, place, field)
            for q, entry in enumerate(_part(paragraph, "qas", list, place, field)):
                spot = f"{place}.qas[{q}]"
                _part(entry, "question", str, spot, field)
                questions.append(row_question({**entry, "context": context}, spot, field))
    if not questions:
        raise CorpusError(field, str(path), "holds no question", "check that it is the right file")
    return questions


def row_question(row: Mapping[str, Any], where: str, field: str) -> Question:
    """A question from a mapping in the form of SQuAD's files or data set."""
    context = _part(row, "context", str, where, field)
    answers = _part(row, "answers", list | dict, where, field)
    if isinstance(answers, dict):
        # `datasets` gives a mapping of lists.
        texts = _part(answers, "text", list, f"{where}.answers", field)
        starts = _part(answers, "answer_start", list, f"{where}.answers", field)
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=False)]
    accepted = tuple(
        Answer(
            _part(answer, "answer_start", int, f"{where}.answers[{index}]", field),
            _part(answer, "text", str, f"{where}.answers[{index}]", field),
        )
        for index, answer in enumerate(answers)
    )
    question = Question(
        str(row.get("id", where)), _part(row, "question", str, where, field), context, accepted
    )
    for text in (question.name, question.question, question.context, *(answer.text for answer in accepted)):
        if has_half_character(text):
            raise CorpusError(field, where, HALF_CHARACTER, "correct or remove it")
    return question


# UTF-8 cannot encode it, so neither files nor tokenizers accept it.
HALF_CHARACTER = "holds half a character (a surrogate without the other, such as \\ud800)"


def has_half_character(text: str) -> bool:
    """Whether a text holds a surrogate, which JSON's escapes allow."""
    return not text.isascii() and _SURROGATE.search(text) is not None


_SURROGATE = re.compile("[\ud800-\udfff]")


def _part(value: object, key: str, kind: type | UnionType, where: str, field: str) -> Any:
    if not isinstance(value, Mapping) or key not in value:
        raise CorpusError(field, where, f"has no `{key}`", "give a file in SQuAD's format")
    if not isinstance(value[key], kind):
        raise CorpusError(
            field, where, f"`{key}` is a {type(value[key]).__name__}", "give a file in SQuAD's format"
        )
    return value[key]


def _occurrences(context: str, text: str) -> list[int]:
    positions = []
    position = context.find(text)
    while position >= 0:
        positions.append(position)
        position = context.find(text, position + 1)
    return positions
