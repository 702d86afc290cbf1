"""Sentences to learn vectors of: lines of text and translations, deduplicated, held out by content."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.config.embed import EmbedLanguage, Sentences
from polydistill.corpora.cleaning import clean_line
from polydistill.corpora.lines import is_text_file, read_lines
from polydistill.corpora.sources import read_documents
from polydistill.disk import Json, hash_text, write_json, write_text
from polydistill.errors import CorpusError

SPLITS = ("train", "held_out")


class Sentence(NamedTuple):
    """A text that the student reads, and the sentence whose vector by the teacher is its target."""

    text: str
    source: str


@dataclass(frozen=True)
class Split:
    """One part of a language's sentences.

    texts    that the student reads
    sources  that the teacher reads, each once
    rows     [texts] int64, the source of each text
    """

    texts: list[str]
    sources: list[str]
    rows: npt.NDArray[np.int64]


class _Smallest:
    """The sentences with the smallest keys, at most `number` of them; None: all."""

    def __init__(self, number: int | None) -> None:
        self.number = number
        self.heap: list[tuple[int, int, Sentence]] = []

    def add(self, key: int, order: int, sentence: Sentence) -> None:
        # Orders differ, so sentences themselves are never compared.
        heapq.heappush(self.heap, (-key, -order, sentence))
        if self.number is not None and len(self.heap) > self.number:
            heapq.heappop(self.heap)

    def split(self) -> Split:
        """In the order in which they were added."""
        kept = [sentence for _, _, sentence in sorted(self.heap, key=lambda entry: -entry[1])]
        places: dict[str, int] = {}
        rows = [places.setdefault(sentence.source, len(places)) for sentence in kept]
        return Split(
            [sentence.text for sentence in kept], list(places), np.array(rows, dtype=np.int64).reshape(-1)
        )


def write_sentences(
    folder: Path,
    language: EmbedLanguage,
    settings: Sentences,
    *,
    field: str,
    held_out: int,
    avoid: set[int],
    seed: int,
) -> Json:
    """Write a language's sentences into a folder; returns counts by split, and dropped ones by reason.

    field     of the language in the recipe
    held_out  maximum number of held-out sentences
    avoid     hashes of cleaned test sentences: neither they nor their translations are trained on
    seed      of the choice among more sentences than `max_sentences`

    A sentence is held out by its own hash, so more text moves no sentence from one side to the other; its
    translation goes with it. Raises CorpusError for what cannot be read, and if a split is left empty.
    """
    dropped: Counter[str] = Counter()
    seen: set[int] = set()
    kept = {"train": _Smallest(settings.max_sentences), "held_out": _Smallest(held_out)}
    for order, sentence in enumerate(_read(language, settings, dropped, field)):
        key = hash_text(sentence.text)
        if key in seen:
            dropped["repeated"] += 1
            continue
        seen.add(key)
        if key in avoid or hash_text(sentence.source) in avoid:
            dropped["test_sentence"] += 1
        elif hash_text(sentence.source) < settings.held_out_share * 2**64:
            kept["held_out"].add(key, order, sentence)
        else:
            kept["train"].add(hash_text(f"{seed} {sentence.text}"), order, sentence)
    counts: Json = {"dropped": dict(sorted(dropped.items()))}
    for name in SPLITS:
        split = kept[name].split()
        if not split.texts:
            raise CorpusError(
                field,
                None,
                f"leaves no sentence {'to train on' if name == 'train' else 'held out'} "
                f"(dropped: {counts['dropped'] or 'none'})",
                "give more text, or change `sentences.held_out_share` or `sentences.min_characters`",
            )
        write_text(folder / f"{name}.texts.txt", "\n".join(split.texts))
        write_text(folder / f"{name}.sources.txt", "\n".join(split.sources))
        np.save(folder / f"{name}.rows.npy", split.rows)
        counts[name] = {
            "texts": len(split.texts),
            "sources": len(split.sources),
            "characters": sum(map(len, split.texts)),
        }
    write_json(folder / "statistics.json", counts)
    return counts


def read_split(folder: Path, name: str) -> Split:
    """One split that `write_sentences` wrote."""
    # Cleaned lines have no other line ends.
    texts, sources = (
        (folder / f"{name}.{kind}.txt").read_text("utf-8").split("\n") for kind in ("texts", "sources")
    )
    return Split(texts, sources, np.load(folder / f"{name}.rows.npy"))


def cleaned(text: str, settings: Sentences) -> str | None:
    """A sentence as training text has it; None if it is too short to be there."""
    return clean_line(text, min_characters=settings.min_characters, dropped=Counter(), changed=Counter())


def _read(
    language: EmbedLanguage, settings: Sentences, dropped: Counter[str], field: str
) -> Iterator[Sentence]:
    def clean(line: str) -> str | None:
        return clean_line(line, min_characters=settings.min_characters, dropped=dropped, changed=Counter())

    for document in read_documents(language.text, dropped, field=f"{field}.text", block_lines=64):
        for line in document.lines:
            text = clean(line)
            if text is not None:
                yield Sentence(text, text)
    for index, path in enumerate(language.translations):
        yield from _translations(Path(path).expanduser(), clean, dropped, f"{field}.translations[{index}]")


def _translations(
    path: Path, clean: Callable[[str], str | None], dropped: Counter[str], field: str
) -> Iterator[Sentence]:
    """Of each line the sentence itself, then its translations."""
    check_file(path, field)
    for number, line in enumerate(read_lines(path, dropped, field=field), start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) < 2:
            raise CorpusError(
                field,
                f"{path}, line {number}",
                "has no tab",
                "write a sentence, a tab and its translation on each line",
            )
        source, *translations = map(clean, cells)
        if source is None:
            continue
        yield Sentence(source, source)
        for text in translations:
            if text is not None:
                yield Sentence(text, source)


def check_file(path: Path, field: str) -> Path:
    """The path of a file; CorpusError if there is none."""
    if not is_text_file(path, field):
        raise CorpusError(
            field, str(path), "no such file", f"check the path, which is relative to {Path.cwd()}"
        )
    return path
