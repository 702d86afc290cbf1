"""Counts from remembered words, and cuts by them, against the tokenizer itself."""

import pickle
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import bundled_lines
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from polydistill.corpora import counting
from polydistill.corpora.cleaning import clean_line
from polydistill.corpora.counting import TokenCounter, count_characters
from polydistill.corpora.packing import pack
from polydistill.tokenization.wordpiece import train_wordpiece

LINES = [*bundled_lines("en", 300), *bundled_lines("ru", 300), "我们在山上看到了一只很大的鸟。"] * 2


def wordpiece(**settings: bool) -> Tokenizer:
    return train_wordpiece(lambda: LINES, size=500, **{"lowercase": True, "strip_accents": True} | settings)


def unsplit_han() -> Tokenizer:
    tokenizer = wordpiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=600, show_progress=False))
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


MAKERS = {
    "wordpiece": wordpiece,
    "cased": lambda: wordpiece(lowercase=False, strip_accents=False),
    "unsplit_han": unsplit_han,
    "byte_level": byte_level,
    "unigram": unigram,
}
MADE: dict[str, Tokenizer] = {}


def made(*names: str) -> list[Tokenizer]:
    for name in names:
        if name not in MADE:
            MADE[name] = MAKERS[name]()
    return [MADE[name] for name in names]


def by_the_tokenizer(backends: list[Tokenizer], text: str) -> int:
    for backend in backends:
        backend.encode_special_tokens = True
    return max(len(backend.encode(text, add_special_tokens=False).ids) for backend in backends)


pieces = st.one_of(
    st.sampled_from([" ", "\n", "  ", "[MASK]", "[CLS]", "你", "好鸟", "한국", "é", "e\u0301", "\u0301"]),
    st.sampled_from([".", "...", "'s", "１２", "ﷺ", "Σ", "\U00020000", "\u3000", "\ufeff", "\u200d"]),
    st.sampled_from(["an", "the", "mountain", "гора", "слово", "x"]),
    st.text(max_size=4),
)


def cleaned(text: str) -> str:
    lines = (
        clean_line(line, min_characters=1, dropped=Counter(), changed=Counter()) for line in text.split("\n")
    )
    return "\n".join(line for line in lines if line)


odd_texts = st.lists(st.lists(pieces, max_size=20).map("".join).map(cleaned), min_size=1, max_size=6)
KINDS = [("wordpiece",), ("cased",), ("unsplit_han",), ("wordpiece", "cased"), ("wordpiece", "unsplit_han")]


@pytest.mark.parametrize("kinds", KINDS)
@settings(deadline=None, max_examples=60)
@given(texts=odd_texts)
def test_words_have_the_tokens_that_their_text_has(kinds, texts) -> None:
    backends = made(*kinds)
    counter = TokenCounter(backends)
    assert counter.exact_by_words
    expected = [by_the_tokenizer(backends, text) for text in texts]
    assert counter(texts) == expected
    # Again, from memory, and in another process.
    assert counter(texts) == expected
    assert pickle.loads(pickle.dumps(counter))(texts) == expected


@pytest.mark.parametrize("kinds", KINDS)
@settings(deadline=None, max_examples=60)
@given(texts=odd_texts)
def test_units_cover_the_text_and_have_its_tokens(kinds, texts) -> None:
    backends = made(*kinds)
    counter = TokenCounter(backends)
    for text in texts:
        units = counter.units(text)
        words = [text[start:end] for start, end in zip(units.starts, units.ends, strict=True)]
        assert "".join(words) == "".join(text.split())
        for backend, total in zip(backends, units.totals, strict=True):
            sizes = [by_the_tokenizer([backend], word) for word in words]
            assert [after - before for before, after in pairwise(total)] == sizes


@pytest.mark.parametrize("kinds", [("byte_level",), ("unigram",), ("wordpiece", "unigram")])
@settings(deadline=None, max_examples=60)
@given(texts=odd_texts)
def test_other_tokenizers_are_asked_themselves(kinds, texts) -> None:
    backends = made(*kinds)
    counter = TokenCounter(backends)
    assert not counter.exact_by_words
    assert counter(texts) == [by_the_tokenizer(backends, text) for text in texts]


@pytest.mark.parametrize("kind", ["byte_level", "unigram"])
def test_sums_of_words_are_close_for_other_tokenizers(kind) -> None:
    counter = TokenCounter(made(kind))
    lines = bundled_lines("en", 900)[300:]
    assert abs(sum(counter.by_words(lines)) - sum(counter(lines))) < 0.02 * sum(counter(lines))


@pytest.mark.parametrize("kinds", [*KINDS, ("byte_level",), ("unigram",)])
@settings(deadline=None, max_examples=60)
@given(texts=odd_texts, room=st.integers(6, 30))
def test_no_example_is_too_long_and_no_text_is_lost(kinds, texts, room) -> None:
    backends = made(*kinds)
    counter = TokenCounter(backends)
    lines = [(" ".join(text.split()), run) for run, text in enumerate(texts) if text.split()]
    exact = counter.exact_by_words
    packed = list(
        pack(
            lines,
            counter,
            room,
            estimate=None if exact else counter.by_words,
            units=counter if exact else None,
        )
    )
    assert "".join("".join(text.split()) for text, _ in packed) == "".join(
        "".join(line.split()) for line, _ in lines
    )
    for text, tokens in packed:
        assert tokens == by_the_tokenizer(backends, text)
        assert tokens <= room or len(text) == 1


def test_few_words_are_remembered_and_counts_stay_right(monkeypatch) -> None:
    monkeypatch.setattr(counting, "FIRST_WORDS", 50)
    monkeypatch.setattr(counting, "LAST_WORDS", 20)
    monkeypatch.setattr(counting, "LAST_LONG_WORDS", 2)
    counter = TokenCounter(made("wordpiece"))
    lines = [*bundled_lines("en", 200), "supercalifragilisticexpialidociousness " * 3, "x" * 400]
    for start in range(0, len(lines), 7):
        chunk = lines[start : start + 7]
        assert counter(chunk) == [by_the_tokenizer(made("wordpiece"), line) for line in chunk]
    assert len(counter._known[0].first) == 50
    assert len(counter._known[0].last) < 150


def test_added_tokens_that_text_may_have_are_not_counted_by_words() -> None:
    tokenizer = wordpiece()
    assert TokenCounter([tokenizer]).exact_by_words
    tokenizer.add_tokens(["the mountain"])
    assert not TokenCounter([tokenizer]).exact_by_words
    assert count_characters(["ab", ""]) == [2, 0]
