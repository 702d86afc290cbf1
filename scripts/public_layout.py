"""Public data in the layout that recipes read: each function checks what it got, and raises ValueError."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

UPOS = {
    "ADJ",
    "ADP",
    "ADV",
    "AUX",
    "CCONJ",
    "DET",
    "INTJ",
    "NOUN",
    "NUM",
    "PART",
    "PRON",
    "PROPN",
    "PUNCT",
    "SCONJ",
    "SYM",
    "VERB",
    "X",
}
TAG = re.compile(r"O|[BI]-(PER|LOC|ORG|MISC)")
# The names of entities elsewhere. What is not here becomes O: dates, times and quantities.
ENTITIES = {
    "PER": "PER",
    "LOC": "LOC",
    "ORG": "ORG",
    "MISC": "MISC",
    "PS": "PER",
    "LC": "LOC",
    "OG": "ORG",
    "OTH": "MISC",
}
# The classes of WikiAnn's `ner_tags`, by number.
WIKIANN = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
# Shorter paragraphs of an encyclopedia are headings and remains of lists.
LEAST_CHARACTERS = 20


def treebank(raw: bytes) -> list[str]:
    """The sentences of a CoNLL-U file, each with its comments."""
    blocks = _blocks(raw.decode("utf-8"))
    for block in blocks:
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            cells = line.split("\t")
            if len(cells) != 10:
                raise ValueError(f"{len(cells)} columns in place of 10: {line:.80}")
            # Ranges (1-2) and empty nodes (1.1) have no tag.
            if cells[0].isdigit() and cells[3] not in UPOS:
                raise ValueError(f"no universal part of speech: {line:.80}")
    return blocks


def tagged_words(raw: bytes) -> list[str]:
    """Sentences of `word tag` lines, whose tags are parts of speech, as CoNLL-U."""
    sentences = [
        [line.rsplit(maxsplit=1) for line in block.splitlines()] for block in _blocks(raw.decode("utf-8"))
    ]
    blocks = []
    for number, words in enumerate(sentences, 1):
        if any(len(word) != 2 for word in words):
            raise ValueError(f"sentence {number}: not `word tag` in each line")
        rows = [f"{place}\t{word}\t_\t{tag}" + "\t_" * 6 for place, (word, tag) in enumerate(words, 1)]
        text = " ".join(word for word, _ in words)
        blocks.append("\n".join([f"# sent_id = {number}", f"# text = {text}", *rows]))
    return treebank("\n\n".join(blocks).encode())


def entities(raw: bytes, *, word: int = 0, tag: int = 1, separator: str | None = None) -> list[str]:
    """Sentences with a word and its entity in each line, in the columns that are named.

    separator  of columns; None: blanks
    """
    sentences = []
    for block in _blocks(raw.decode("utf-8")):
        # Only where columns are parted by tabs can a comment be told from the word `#`.
        lines = [line for line in block.splitlines() if not (separator == "\t" and line.startswith("# "))]
        cells = [line.split(separator) for line in lines]
        sentences.append([(each[word], each[tag]) for each in cells])
    return entity_blocks(sentences)


def entity_lines(raw: bytes) -> list[str]:
    """Sentences of JSON lines with `tokens` and `tags`."""
    rows = [json.loads(line) for line in raw.decode("utf-8").splitlines() if line.strip()]
    return entity_blocks(list(zip(row["tokens"], row["tags"], strict=True)) for row in rows)


def entity_rows(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Sentences of WikiAnn's rows."""
    return entity_blocks(
        list(zip(row["tokens"], (WIKIANN[tag] for tag in row["ner_tags"]), strict=True)) for row in rows
    )


def tagged_characters(raw: bytes) -> list[str]:
    """Sentences with a character and its entity in each line (KLUE): words, split where an entity ends."""
    sentences = []
    for block in _blocks(raw.decode("utf-8")):
        words: list[tuple[str, str]] = []
        last = " "
        for line in block.splitlines():
            if line.startswith("## "):
                continue
            character, _, name = line.partition("\t")
            tag = _tag(name)
            inner = last.strip() and words and tag in (f"I-{words[-1][1][2:]}", "O")
            # `I-` goes on with the entity, O with a word that is none.
            if character.strip() and inner and (tag != "O" or words[-1][1] == "O"):
                words[-1] = (words[-1][0] + character, words[-1][1])
            elif character.strip():
                words.append((character, tag))
            last = character
        sentences.append(words)
    return entity_blocks(sentence for sentence in sentences if sentence)


def entity_blocks(sentences: Iterable[list[tuple[str, str]]]) -> list[str]:
    """Sentences of (word, tag) as blocks of `word<TAB>tag` lines; tags are IOB2 of four classes."""
    blocks = []
    for sentence in sentences:
        rows, last = [], "O"
        for word, name in sentence:
            tag = _tag(name)
            # An entity of another class before it: this one begins.
            if tag.startswith("I-") and last[2:] != tag[2:]:
                tag = f"B-{tag[2:]}"
            rows.append(f"{word}\t{tag}")
            last = tag
        if any("\t" in word or not word.strip() for word, _ in sentence):
            raise ValueError(f"a word is blank or has a tab: {sentence!r:.80}")
        blocks.append("\n".join(rows))
    return [block for block in blocks if block]


def questions(rows: Iterable[Mapping[str, Any]], *, language: str = "") -> list[dict[str, Any]]:
    """SQuAD's articles, one for each row with `context`, `question` and `answers`.

    language  rows whose `id` begins with this name; all if empty
    """
    articles = [
        {"paragraphs": [{"context": row["context"], "qas": [_question(row)]}]}
        for row in rows
        if str(row["id"]).startswith(language)
    ]
    return squad(json.dumps({"data": articles}).encode())


def _question(row: Mapping[str, Any]) -> dict[str, Any]:
    starts, texts = row["answers"]["answer_start"], row["answers"]["text"]
    answers = [{"answer_start": start, "text": text} for start, text in zip(starts, texts, strict=True)]
    return {"id": str(row["id"]), "question": row["question"], "answers": answers}


def squad(raw: bytes) -> list[dict[str, Any]]:
    """The articles of a file in SQuAD's format, every answer at its place."""
    articles: list[dict[str, Any]] = json.loads(raw)["data"]
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                for answer in question["answers"]:
                    start = answer["answer_start"]
                    if paragraph["context"][start : start + len(answer["text"])] != answer["text"]:
                        raise ValueError(f"question {question['id']}: no answer at character {start}")
    return articles


def table(raw: bytes, *, columns: tuple[str, ...]) -> list[str]:
    """The lines of a table with tabs, its header first, which must have these columns."""
    lines = raw.decode("utf-8").strip("\n").splitlines()
    header = lines[0].split("\t") if lines else []
    if not set(columns) <= set(header):
        raise ValueError(f"columns {', '.join(header)}; wanted {', '.join(columns)}")
    return lines


def pairs(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """PAWS-X's rows as a table with tabs."""
    out = io.StringIO()
    columns = ("sentence1", "sentence2", "label")
    # Quotes are text, so nothing may need them.
    writer = csv.writer(out, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [" ".join(str(row[column]).split()) for column in columns]
        if all(cells[:2]):
            writer.writerow(cells)
    return table(out.getvalue().encode(), columns=columns)


def scored_pairs(raw: bytes) -> list[str]:
    """KLUE-STS's pairs as a table with tabs; `label` is the mean of people's scores, from 0 to 5."""
    try:
        rows = [
            {
                "label": row["labels"]["real-label"],
                "sentence1": row["sentence1"],
                "sentence2": row["sentence2"],
            }
            for row in json.loads(raw)
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no pairs with sentence1, sentence2 and labels.real-label ({error})") from error
    return pairs(rows)


def paragraphs(rows: Iterable[Mapping[str, Any]], *, max_characters: int) -> list[str]:
    """Paragraphs of articles, one a line, until there are so many characters."""
    taken, lines = 0, []
    for paragraph in _paragraphs(rows):
        if taken >= max_characters:
            break
        lines.append(paragraph)
        taken += len(paragraph) + 1
    return lines


def _paragraphs(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        for line in str(row["text"]).splitlines():
            text = " ".join(line.split())
            if len(text) >= LEAST_CHARACTERS:
                yield text


def _tag(name: str) -> str:
    place, _, kind = name.partition("-")
    tag = f"{place}-{ENTITIES[kind]}" if kind in ENTITIES else "O"
    if not TAG.fullmatch(tag):
        raise ValueError(f"not an entity's tag: {name:.40}")
    return tag


def _blocks(text: str) -> list[str]:
    return [block for part in re.split(r"\r?\n[ \t]*\r?\n", text) if (block := part.strip("\r\n"))]
