"""Labelled examples of files and data sets: classes of texts and pairs, choices, questions, sentences."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from polydistill.config.finetune import Columns, LabelledSource
from polydistill.corpora.lines import MAX_TASK_BYTES, is_text_file, read_lines
from polydistill.corpora.sources import dataset_errors
from polydistill.errors import CorpusError
from polydistill.tasks.questions import HALF_CHARACTER, Question, has_half_character, read_squad, row_question
from polydistill.tasks.tagged import TaggedSentence, read_tagged

COMPRESSIONS = (".gz", ".xz", ".zst")
# Of a table's field; csv's own limit is 128 KiB.
MAX_FIELD_CHARACTERS = 1 << 24


@dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, and its class."""

    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class Choice:
    """A premise, its possible continuations, and the index of the right one, from 0."""

    premise: str
    choices: tuple[str, ...]
    right: int


Example = TaggedSentence | LabelledText | Choice | Question


class Row(NamedTuple):
    """A row of a table, and its place for messages."""

    where: str
    values: dict[str, Any]


def read_labelled(source: LabelledSource, kind: str, columns: Columns, *, field: str) -> Sequence[Example]:
    """The examples of a file or data set.

    kind   of the task: `ner`, `pos`, `classification`, `pairs`, `choice`, `qa`
    field  of the source in the recipe
    Raises CorpusError, with file and line, for missing or unusable input.
    """
    if source.quotes is not None:
        columns = columns.model_copy(update={"quotes": source.quotes})
    first = source.first_example - 1
    last = None if source.num_examples is None else first + source.num_examples
    rows = None
    if source.path is None:
        rows = _data_set(source, kind, columns, field)
    else:
        path = Path(source.path).expanduser()
        if not is_text_file(path, field):
            raise CorpusError(
                field, str(path), "no such file", f"check the path, which is relative to {Path.cwd()}"
            )
        if kind not in ("ner", "pos", "qa"):
            rows = read_table(path, columns, field)
    examples: Sequence[Example]
    if rows is not None:
        examples = [_MAKERS[kind](row, kind, columns, field) for row in islice(rows, first, last)]
    elif kind == "qa":
        examples = read_squad(path, field=field)[first:last]
    else:
        examples = read_tagged(path, field=field, max_sentences=last)[first:]
    if not examples:
        raise CorpusError(
            field,
            source.path or source.dataset,
            "holds no example" + (f" from {first + 1} on" if first else ""),
            "check that it is the right file",
        )
    return examples


def read_table(path: Path, columns: Columns, field: str) -> Iterator[Row]:
    """The rows of a .tsv, .csv or .jsonl file; CorpusError, with file and line, for an unreadable one."""
    name = path.name
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    if name.endswith((".jsonl", ".ndjson")):
        yield from _json_lines(path, field)
    elif name.endswith((".tsv", ".csv")):
        yield from _separated(path, columns, field, tabs=name.endswith(".tsv"))
    else:
        raise CorpusError(
            field,
            str(path),
            "its file name has no ending that this task reads",
            "give a .tsv, .csv or .jsonl file (.gz, .xz and .zst as well)",
        )


def whole_lines(path: Path, field: str) -> Iterator[str]:
    """The lines of a file; CorpusError if one of them cannot be read."""
    dropped: Counter[str] = Counter()
    yield from read_lines(path, dropped, field=field, whole=True, most=MAX_TASK_BYTES)
    if dropped:
        # Without one of its lines, an example would be a different one.
        reasons = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in dropped.items())
        raise CorpusError(
            field, str(path), f"has lines that cannot be read ({reasons})", "correct or convert it"
        )


def _json_lines(path: Path, field: str) -> Iterator[Row]:
    for number, line in enumerate(whole_lines(path, field), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad(path, number, field, f"is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise _bad(path, number, field, f"is a {type(row).__name__} instead of an object")
        yield Row(f"{path}, line {number}", row)


def _separated(path: Path, columns: Columns, field: str, *, tabs: bool) -> Iterator[Row]:
    """Rows of a table with tabs or commas.

    With tabs, quotation marks are plain text unless the recipe sets `quotes`: published sets have texts that
    begin with one.
    """
    quotes = not tabs if columns.quotes is None else columns.quotes
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    reader = csv.reader(
        (line + "\n" for line in whole_lines(path, field)),
        delimiter="\t" if tabs else ",",
        strict=True,
        doublequote=True,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
    )
    header = list(columns.header)
    try:
        for row in reader:
            if not row:
                continue
            if not header:
                header = [name.strip() for name in row]
                continue
            if columns.header and [name.strip() for name in row] == header:
                raise _bad(
                    path,
                    reader.line_num,
                    field,
                    "repeats `columns.header`, which is only for files without a header line",
                    "leave columns.header out",
                )
            if len(row) != len(header):
                raise _bad(
                    path,
                    reader.line_num,
                    field,
                    f"has {len(row)} fields and the header {len(header)}",
                    "correct the line, or set `columns.quotes`",
                )
            yield Row(f"{path}, line {reader.line_num}", dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise _bad(
            path,
            reader.line_num,
            field,
            f"cannot be split into fields ({error})",
            "correct it, or set `columns.quotes`",
        ) from error


def _value(row: Row, column: str, name: str, field: str) -> Any:
    if column not in row.values:
        raise CorpusError(
            field,
            row.where,
            f"has no column {column!r} (it has {', '.join(map(str, row.values))})",
            f"name the right one in the task's `columns.{name}`",
        )
    return row.values[column]


def _string(row: Row, column: str, name: str, field: str) -> str:
    value = _value(row, column, name, field)
    if not isinstance(value, str):
        raise CorpusError(
            field,
            row.where,
            f"column {column!r} holds {value!r:.60} instead of text",
            "name another column, or correct it",
        )
    return _whole(value, row, column, field)


def _whole(text: str, row: Row, column: str, field: str) -> str:
    if has_half_character(text):
        raise CorpusError(
            field, row.where, f"column {column!r} {HALF_CHARACTER}", "correct or remove the row"
        )
    return text


def _label(row: Row, column: str, field: str) -> str:
    value = _value(row, column, "label", field)
    if value is None or isinstance(value, list | dict) or not str(value).strip():
        raise CorpusError(field, row.where, f"column {column!r} holds no label", "correct or remove the row")
    return _whole(str(value).strip(), row, column, field)


def _text(row: Row, kind: str, columns: Columns, field: str) -> LabelledText:
    texts = [_string(row, columns.text, "text", field)]
    if kind == "pairs":
        texts.append(_string(row, columns.pair, "pair", field))
    return LabelledText(tuple(texts), _label(row, columns.label, field))


def _choice(row: Row, kind: str, columns: Columns, field: str) -> Choice:
    premise = _string(row, columns.premise, "premise", field)
    if columns.question is not None:
        premise = f"{premise} {_string(row, columns.question, 'question', field)}"
    choices = tuple(_string(row, column, "choices", field) for column in columns.choices)
    label = _label(row, columns.label, field)
    # Python does not parse numbers of thousands of digits.
    right = int(label) - columns.first_choice if re.fullmatch(r"-?\d{1,18}", label) else -1
    if not 0 <= right < len(choices):
        last = columns.first_choice + len(choices) - 1
        raise CorpusError(
            field,
            row.where,
            f"label {label!r:.60} is not in {columns.first_choice} to {last}",
            "correct it, or set `columns.first_choice` to the number of the first choice",
        )
    return Choice(premise, choices, right)


def _question(row: Row, kind: str, columns: Columns, field: str) -> Question:
    return row_question(row.values, row.where, field)


def _tagged(row: Row, kind: str, columns: Columns, field: str) -> TaggedSentence:
    words = _value(row, columns.words, "words", field)
    tags = _value(row, columns.tags, "tags", field)
    if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
        raise CorpusError(
            field, row.where, "its words and tags are not lists of equal length", "name the right `columns`"
        )
    return TaggedSentence(
        tuple(_whole(str(word), row, columns.words, field) for word in words),
        tuple(_whole(str(tag), row, columns.tags, field) for tag in tags),
    )


_MAKERS: dict[str, Callable[[Row, str, Columns, str], Example]] = {
    "classification": _text,
    "pairs": _text,
    "choice": _choice,
    "qa": _question,
    "ner": _tagged,
    "pos": _tagged,
}


def _data_set(source: LabelledSource, kind: str, columns: Columns, field: str) -> Iterator[Row]:
    """Rows of a data set; class indices become class names."""
    import datasets

    name = str(source.dataset)
    folder = Path(name).expanduser()
    with dataset_errors(name, field):
        if any((folder / mark).is_file() for mark in ("dataset_info.json", "dataset_dict.json")):
            loaded: Any = datasets.load_from_disk(str(folder))
            loaded = loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            place = str(folder) if folder.is_dir() else name
            loaded = datasets.load_dataset(place, source.config, split=source.split)
        names = {column: _class_names(feature) for column, feature in loaded.features.items()}
        for number, row in enumerate(loaded):
            yield Row(
                f"{name}, row {number}",
                {column: _named(value, names[column]) for column, value in row.items()},
            )


def _class_names(feature: object) -> list[str] | None:
    names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None:
        return value
    if isinstance(value, list):
        return [_named(entry, names) for entry in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _bad(
    path: Path, number: int, field: str, reason: str, remedy: str = "correct the line, or name another file"
) -> CorpusError:
    return CorpusError(field, f"{path}, line {number}", reason, remedy)
