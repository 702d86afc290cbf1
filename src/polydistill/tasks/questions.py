"""Questions with their answers within a text: SQuAD's JSON, and where answers stand."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from polydistill.corpora.lines import MAX_TASK_BYTES, read_lines
from polydistill.errors import CorpusError


class Answer(NamedTuple):
    """An answer's text, and at which character of the context it is said to start."""

    start: int
    text: str


@dataclass(frozen=True)
class Question:
    """A question, the text that holds its answer, and all answers that count as right."""

    name: str
    question: str
    context: str
    answers: tuple[Answer, ...]


def locate(question: Question) -> tuple[int, int] | None:
    """First and last-but-one character of the first answer that stands in the context; None if none does.

    Where an answer is not at its start, its nearest occurrence is taken.
    """
    for start, text in question.answers:
        if not text:
            continue
        if question.context.startswith(text, start) and start >= 0:
            return start, start + len(text)
        places = _occurrences(question.context, text)
        if places:
            nearest = min(places, key=lambda place: (abs(place - start), place))
            return nearest, nearest + len(text)
    return None


def answer_faults(questions: Sequence[Question]) -> dict[str, int]:
    """How many questions have no answer (`without`), none that stands in the context (`absent`), or one that stands
    elsewhere than it says (`misplaced`); those that occur alone.
    """
    found: Counter[str] = Counter()
    for question in questions:
        told = [answer for answer in question.answers if answer.text]
        if not told:
            found["without"] += 1
        elif locate(question) is None:
            found["absent"] += 1
        elif not any(
            answer.start >= 0 and question.context.startswith(answer.text, answer.start) for answer in told
        ):
            found["misplaced"] += 1
    return dict(sorted(found.items()))


def read_squad(path: Path, *, field: str) -> list[Question]:
    """The questions of a file in SQuAD's format: data → paragraphs (context) → qas (question, answers).

    Raises CorpusError, with the line of damaged JSON or the place of what is missing in it.
    """
    dropped: Counter[str] = Counter()
    text = "\n".join(read_lines(path, dropped, field=field, whole=True, most=MAX_TASK_BYTES))
    if dropped:
        raise CorpusError(field, str(path), "has lines that are not UTF-8, or too long", "mend or convert it")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(
            field,
            f"{path}, line {error.lineno}",
            f"is not JSON ({error.msg})",
            "give a file in SQuAD's format",
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists nested without end
        raise CorpusError(
            field, str(path), f"is not JSON ({error})", "give a file in SQuAD's format"
        ) from None
    found = []
    articles = _part(whole, "data", list, str(path), field)
    for a, article in enumerate(articles):
        where = f"{path}, data[{a}]"
        for p, paragraph in enumerate(_part(article, "paragraphs", list, where, field)):
            place = f"{where}.paragraphs[{p}]"
            context = _part(paragraph, "context", str, place, field)
            for q, entry in enumerate(_part(paragraph, "qas", list, place, field)):
                spot = f"{place}.qas[{q}]"
                _part(entry, "question", str, spot, field)
                found.append(row_question({**entry, "context": context}, spot, field))
    if not found:
        raise CorpusError(field, str(path), "holds no question", "check that it is the right file")
    return found


def row_question(row: Mapping[str, Any], where: str, field: str) -> Question:
    """A question of a mapping with question, context and answers, as SQuAD's files or its data set have them."""
    context = _part(row, "context", str, where, field)
    answers = _part(row, "answers", list | dict, where, field)
    if isinstance(answers, dict):
        # `datasets` has a mapping of lists.
        texts = _part(answers, "text", list, f"{where}.answers", field)
        starts = _part(answers, "answer_start", list, f"{where}.answers", field)
        answers = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=False)]
    told = tuple(
        Answer(
            _part(answer, "answer_start", int, f"{where}.answers[{index}]", field),
            _part(answer, "text", str, f"{where}.answers[{index}]", field),
        )
        for index, answer in enumerate(answers)
    )
    question = Question(str(row.get("id", where)), _part(row, "question", str, where, field), context, told)
    for text in (question.name, question.question, question.context, *(answer.text for answer in told)):
        if has_half_character(text):
            raise CorpusError(field, where, HALF_CHARACTER, "mend or remove it")
    return question


# UTF-8 cannot carry it, so neither files nor tokenizers take it.
HALF_CHARACTER = "holds half a character (a surrogate without the other, such as \\ud800)"


def has_half_character(text: str) -> bool:
    """Whether a text holds a surrogate; JSON can, by an escape."""
    return not text.isascii() and _SURROGATE.search(text) is not None


_SURROGATE = re.compile("[\ud800-\udfff]")


def _part(value: Any, key: str, kind: Any, where: str, field: str) -> Any:
    if not isinstance(value, Mapping) or key not in value:
        raise CorpusError(field, where, f"has no `{key}`", "give a file in SQuAD's format")
    if not isinstance(value[key], kind):
        raise CorpusError(
            field, where, f"`{key}` is a {type(value[key]).__name__}", "give a file in SQuAD's format"
        )
    return value[key]


def _occurrences(context: str, text: str) -> list[int]:
    places = []
    place = context.find(text)
    while place >= 0:
        places.append(place)
        place = context.find(text, place + 1)
    return places
