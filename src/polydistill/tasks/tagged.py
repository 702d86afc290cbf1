"""Sentences with tagged words: treebanks in CoNLL-U, entities in columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import conllu

from polydistill.config.probe import TaggedData
from polydistill.corpora.lines import MAX_LINE_BYTES, MAX_TASK_BYTES, hash_text_file, is_text_file, read_lines
from polydistill.errors import CorpusError

# Of a sentence; without blank lines a whole file would be one sentence.
MAX_SENTENCE_LINES = 20_000


@dataclass(frozen=True)
class TaggedSentence:
    """Words and a tag for each: universal parts of speech, or entities in IOB2 (`B-PER`, `I-PER`, `O`)."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_tagged(path: Path, *, field: str, max_sentences: int | None = None) -> list[TaggedSentence]:
    """A file's sentences: UPOS of a `.conllu` file, the last column of any other (first column: the word).

    path   perhaps compressed: .gz, .xz, .zst. Blank lines separate sentences. Lines that start with `# `
           before a sentence's first word, and `-DOCSTART-` lines, are skipped. Columns are separated by tabs,
           else by spaces.
    field  the file's field in the recipe
    Multi-word tokens and empty nodes of a treebank are left out: words are the syntactic words.
    Raises CorpusError if the file is missing, holds no sentence, or has a word without a tag.
    """
    if not is_text_file(path, field):
        raise CorpusError(field, str(path), "is not a file", "name a .conllu file, or one with columns")
    parse = _treebank_sentence if ".conllu" in path.suffixes else _columns_sentence
    sentences = []
    for number, block in _blocks(path, field):
        sentence = parse(block, path, number, field)
        if sentence.words:
            sentences.append(sentence)
        if max_sentences is not None and len(sentences) >= max_sentences:
            break
    if not sentences:
        raise CorpusError(field, str(path), "holds no tagged sentence", "check that it is the right file")
    return sentences


def _blocks(path: Path, field: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines) of each run of lines between blank ones."""
    block: list[str] = []
    first = 1
    dropped: Counter[str] = Counter()
    lines = read_lines(path, dropped, field=field, whole=True, most=MAX_TASK_BYTES)
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE_BYTES:
            raise _bad(path, number, field, f"has {len(line):,} characters")
        if len(block) >= MAX_SENTENCE_LINES:
            raise _bad(
                path,
                first,
                field,
                f"begins a sentence of more than {MAX_SENTENCE_LINES:,} lines, without a blank line",
            )
        if line.strip():
            if not block:
                first = number
            block.append(line)
        elif block:
            yield first, block
            block = []
    if dropped:
        # Without one of its words, a sentence would be a different one.
        raise CorpusError(
            field, str(path), f"has lines that are not UTF-8 ({dropped.total()})", "correct or convert it"
        )
    if block:
        yield first, block


def _treebank_sentence(block: list[str], path: Path, number: int, field: str) -> TaggedSentence:
    try:
        parsed = conllu.parse("\n".join(block) + "\n\n")
    except (conllu.exceptions.ParseException, ValueError) as error:  # an id of thousands of digits
        raise _bad(path, number, field, f"is not CoNLL-U ({error})") from error
    # Ranges (multi-word tokens) and decimals (empty nodes) have ids that are not integers.
    tokens = [token for sentence in parsed for token in sentence if isinstance(token["id"], int)]
    for token in tokens:
        if not token.get("upos") or token["upos"] == "_":
            raise _bad(path, number, field, f"has no part of speech for {token['form']!r}")
    return TaggedSentence(tuple(token["form"] for token in tokens), tuple(token["upos"] for token in tokens))


def _columns_sentence(block: list[str], path: Path, number: int, field: str) -> TaggedSentence:
    words: list[str] = []
    tags: list[str] = []
    for offset, line in enumerate(block):
        if (line.startswith("# ") and not words) or line.startswith("-DOCSTART-"):
            continue
        columns = line.split("\t") if "\t" in line else line.split()
        if len(columns) < 2 or not columns[0].strip() or not columns[-1].strip():
            raise _bad(path, number + offset, field, f"has no word and tag: {line[:60]!r}")
        words.append(columns[0].strip())
        tags.append(columns[-1].strip())
    return TaggedSentence(tuple(words), tuple(tags))


def _bad(path: Path, number: int, field: str, reason: str) -> CorpusError:
    return CorpusError(field, f"{path}, line {number}", reason, "correct the line, or name another file")


SPLITS = ("train", "test")
Texts = dict[str, dict[str, "TaggedText"]]


def read_tagged_tasks(tasks: Mapping[Any, Mapping[str, TaggedData]], *, field: str = "tasks") -> Texts:
    """Task → language → tagged sentences, all read. Raises CorpusError for an unusable file before any work.

    field  of the tasks in the recipe
    """
    texts = {
        task: {
            language: TaggedText(f"{field}.{task}.{language}", task, language, data)
            for language, data in languages.items()
        }
        for task, languages in tasks.items()
    }
    for languages in texts.values():
        for text in languages.values():
            text.read()
    return texts


@dataclass
class TaggedText:
    """The tagged sentences of one language for one task."""

    field: str
    task: str
    language: str
    data: TaggedData

    def read(self) -> None:
        """Raise CorpusError for an unusable file."""
        tags = {tag for sentence in self.sentences["train"] for tag in sentence.tags}
        if len(tags) == 1:
            raise CorpusError(
                self._field("train"),
                self.data.train,
                f"has a single tag ({tags.pop()}), so there is nothing to learn",
                "use a file with several tags, or leave the language out",
            )

    @cached_property
    def sentences(self) -> dict[str, list[TaggedSentence]]:
        """Split → sentences."""
        return {
            split: read_tagged(
                self._path(split), field=self._field(split), max_sentences=self.data.max_sentences
            )
            for split in SPLITS
        }

    @cached_property
    def identity(self) -> dict[str, str | int | None]:
        """What the sentences depend on."""
        hashes = {split: hash_text_file(self._path(split), self._field(split)) for split in SPLITS}
        return {**hashes, "max": self.data.max_sentences}

    def _path(self, split: str) -> Path:
        return Path(self.data.train if split == "train" else self.data.test)

    def _field(self, split: str) -> str:
        return f"{self.field}.{split}"
