"""Counting tokens: each word is tokenised once, where a text's tokens are those of its words.

Imports neither torch nor transformers: a worker that only counts starts sooner and is smaller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from polydistill.corpora.packing import Units

# Words that a process remembers: the first ones of its text, for the frequent ones are among them, and the
# last ones, for a line is counted again where it is cut. Longer ones are not words (Chinese has no blanks),
# and only the last few are remembered.
FIRST_WORDS, LAST_WORDS, LAST_LONG_WORDS = 1 << 17, 1 << 14, 1 << 10
WORD_CHARACTERS = 24
_JOINED_WORDS = 512
# Normalizers that act on single characters, or within words: what they make of a word depends on no other
# word. `Replace` and `Precompiled` may match a blank.
_LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}
# What `BertNormalizer` takes for Chinese characters.
_HAN = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
_RANGES = "".join(f"{chr(first)}-{chr(last)}" for first, last in _HAN)
_UNITS = re.compile(rf"[{_RANGES}]|[^\s{_RANGES}]+")
# Most other text has none of these, and a class of two ranges is searched several times as fast.
_MAY_BE_HAN = re.compile("[\u3400-\u9fff\uf900-\U0010ffff]")
_AT_BLANKS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}


class TokenCounter:
    """For each text, the largest number of tokens by any of the tokenizers, without special tokens.

    Texts are cleaned lines (`cleaning.clean_line`), joined by line ends: a tokenizer may delete other blanks.
    exact_by_words  whether counts come from remembered words: exact for WordPiece that splits at blanks
    Picklable; a copy in another process remembers words of its own.
    """

    def __init__(self, backends: Sequence[Tokenizer]) -> None:
        self.backends = list(backends)
        specs = [json.loads(backend.to_str()) for backend in self.backends]
        self.exact_by_words = all(map(_splits_at_blanks, specs))
        self._han = [_parts_han(spec) for spec in specs]
        # Byte-level tokens begin with the blank before the word.
        self._blanks = [" " if _is_byte_level(spec) else "" for spec in specs]
        self._known = [_Words() for _ in self.backends]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": [_Words() for _ in self.backends]}

    @property
    def one_tokenizer(self) -> bool:
        """Whether there is one tokenizer."""
        return len(self.backends) == 1

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """[n] exact counts."""
        if self.exact_by_words:
            return self.by_words(texts)
        counts = np.zeros(len(texts), dtype=np.int64)
        for backend in self.backends:
            counts = np.maximum(counts, np.array(_count(backend, texts), dtype=np.int64))
        return [int(count) for count in counts]

    def by_words(self, texts: Sequence[str]) -> list[int]:
        """[n] the sums of the words' counts: exact if `exact_by_words`, close for most other tokenizers."""
        counts = [0] * len(texts)
        plain = [text.split() for text in texts]
        # A Chinese character is a word where the tokenizer puts blanks around it.
        apart = plain
        if any(self._han):
            apart = [
                _UNITS.findall(text) if _MAY_BE_HAN.search(text) else words
                for text, words in zip(texts, plain, strict=True)
            ]
        for backend, blank, han, known in zip(
            self.backends, self._blanks, self._han, self._known, strict=True
        ):
            words = apart if han else plain
            if blank:
                words = [each[:1] + [blank + word for word in each[1:]] for each in plain]
            sizes = known.sizes(set[str]().union(*words), partial(self._count_words, backend))
            counts = [
                max(count, sum(map(sizes.__getitem__, each)))
                for count, each in zip(counts, words, strict=True)
            ]
        return counts

    def units(self, text: str) -> Units:
        """The units of a text, if `exact_by_words`."""
        apart = all(self._han) and _MAY_BE_HAN.search(text)
        words = _UNITS.findall(text) if apart else text.split()
        starts = _places(text, words)
        ends = [start + len(word) for start, word in zip(starts, words, strict=True)]
        totals = []
        for backend, known in zip(self.backends, self._known, strict=True):
            sizes = known.sizes(set(words), partial(self._count_words, backend))
            totals.append(list(accumulate(map(sizes.__getitem__, words), initial=0)))
        return Units(starts, ends, totals)

    def _count_words(self, backend: Tokenizer, words: list[str]) -> list[int]:
        if not self.exact_by_words:
            return _count(backend, words)
        # As lines of a text, which takes two thirds of the time of single words.
        counts: list[int] = []
        for start in range(0, len(words), _JOINED_WORDS):
            part = words[start : start + _JOINED_WORDS]
            encoding = _as_text(backend).encode("\n".join(part), add_special_tokens=False)
            places = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 0]
            lines = np.cumsum([0] + [len(word) + 1 for word in part])
            counts += np.diff(np.searchsorted(places, lines)).tolist()
        return counts


class _Words:
    """The tokens of words that a process has seen: of the first ones, and of the last ones.

    The last words are two generations: when the younger one is full, the older one is forgotten, but for what
    was used since.
    """

    def __init__(self) -> None:
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.older: dict[str, int] = {}
        self.num_long = 0

    def sizes(self, words: set[str], count: Callable[[list[str]], list[int]]) -> dict[str, int]:
        """Word → tokens; `count` is asked for the words that are not remembered, in order."""
        first, last, older = self.first, self.last, self.older
        sizes = {word: first[word] for word in words if word in first}
        new = []
        for word in words.difference(sizes):
            if word in last:
                sizes[word] = last[word]
            elif word in older:
                sizes[word] = last[word] = older[word]
            else:
                new.append(word)
        if new:
            new.sort()
            counts = count(new)
            sizes.update(zip(new, counts, strict=True))
            self._learn(new, counts)
        return sizes

    def _learn(self, words: list[str], counts: list[int]) -> None:
        if len(self.last) > LAST_WORDS or self.num_long > LAST_LONG_WORDS:
            self.last, self.older, self.num_long = {}, self.last, 0
        for word, count in zip(words, counts, strict=True):
            is_long = len(word) > WORD_CHARACTERS
            self.num_long += is_long
            if is_long or len(self.first) >= FIRST_WORDS:
                self.last[word] = count
            else:
                self.first[word] = count


def _places(text: str, words: list[str]) -> list[int]:
    """Where a text's words start."""
    place, starts = 0, []
    for word in words:
        while text[place].isspace():
            place += 1
        starts.append(place)
        place += len(word)
    return starts


def count_characters(texts: Sequence[str]) -> list[int]:
    """[n] characters: what is counted before there is a tokenizer."""
    return [len(text) for text in texts]


def _count(backend: Tokenizer, texts: Sequence[str]) -> list[int]:
    encodings = _as_text(backend).encode_batch_fast(list(texts), add_special_tokens=False)
    return [len(encoding) for encoding in encodings]


def _as_text(backend: Tokenizer) -> Tokenizer:
    backend.no_truncation()
    # A special token's string in a text is text.
    backend.encode_special_tokens = True
    return backend


def _splits_at_blanks(spec: dict[str, Any]) -> bool:
    """Whether a text's tokens are those of its words, in order."""
    normalizers = _flat(spec["normalizer"], "normalizers")
    splits = _flat(spec["pre_tokenizer"], "pretokenizers")
    return (
        spec["model"]["type"] == "WordPiece"
        and all(each["type"] in _LOCAL_NORMALIZERS for each in normalizers)
        and any(each["type"] in _AT_BLANKS for each in splits)
        # Another one before it may act on the whole text.
        and splits[0]["type"] in _AT_BLANKS
        # An added token that is not special is found in the text, blanks included.
        and all(token["special"] for token in spec["added_tokens"])
    )


def _parts_han(spec: dict[str, Any]) -> bool:
    """Whether Chinese characters are words of their own, in a tokenizer that splits at blanks."""
    normalizers = _flat(spec["normalizer"], "normalizers")
    return _splits_at_blanks(spec) and any(each.get("handle_chinese_chars") for each in normalizers)


def _is_byte_level(spec: dict[str, Any]) -> bool:
    return any(each["type"] == "ByteLevel" for each in _flat(spec["pre_tokenizer"], "pretokenizers"))


def _flat(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """A step of a tokenizer's pipeline, or those of a sequence of steps."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [each for part in step[inner] for each in _flat(part, inner)]
    return [step]
