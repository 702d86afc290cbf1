"""Masks: shares, seeds, and the same words in every copy."""

import numpy as np
import pytest
from tests.conftest import bundled_lines

from polydistill.config.models import Masking
from polydistill.masking import mask, uniform
from polydistill.models import mask_texts
from polydistill.tokenization import encode, load_tokenizer, word_starts


@pytest.fixture(scope="module")
def copies(teachers):
    return [load_tokenizer(str(teachers[name]), name=name) for name in ("en", "en2")]


TEXTS = [" ".join(bundled_lines("en", 1200)[start : start + 4]) for start in range(0, 1200, 4)]


def test_draws_are_uniform_and_depend_on_every_argument() -> None:
    keys = np.arange(20_000)
    draws = uniform(1, 2, keys, 3)
    assert 0 <= draws.min() < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01
    assert np.histogram(draws, 10)[0].min() > 1800
    for other in (uniform(2, 2, keys, 3), uniform(1, 3, keys, 3), uniform(1, 2, keys, 4)):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.03


@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_shares(copies, unit) -> None:
    tokenizer = copies[0]
    masked = mask_texts(
        TEXTS, range(len(TEXTS)), tokenizer, max_length=64, masking=Masking(unit=unit), seed=5
    )
    positions = sum(len(m.positions) for m in masked)
    tokens = sum(len(m.input_ids) - 2 for m in masked)
    assert abs(positions / tokens - 0.15) < 0.015
    seen = np.concatenate([m.input_ids[m.positions] for m in masked])
    gold = np.concatenate([m.gold for m in masked])
    as_mask = seen == tokenizer.special_ids["mask"]
    assert abs(as_mask.mean() - 0.8) < 0.03
    assert abs((~as_mask & (seen != gold)).mean() - 0.1) < 0.03
    assert set(seen[~as_mask]) <= set(tokenizer.ordinary_ids)
    for example, encoded in zip(masked, encode(tokenizer.backend, TEXTS, 64), strict=True):
        restored = example.input_ids.copy()
        restored[example.positions] = example.gold
        assert np.array_equal(restored, encoded.ids)
        assert not set(example.positions) & set(np.flatnonzero(encoded.starts < 0))


def masked_words(tokenizer, text, seed):
    encoded = encode(tokenizer.backend, [text], 512)[0]
    example = mask_texts([text], [77], tokenizer, max_length=512, masking=Masking(), seed=seed)[0]
    words = word_starts(text)
    owner = np.searchsorted(words, encoded.starts, side="right") - 1
    hit = set(owner[example.positions].tolist())
    # A word is masked whole.
    whole = {
        int(w)
        for w in owner[encoded.starts >= 0]
        if set(np.flatnonzero((owner == w) & (encoded.starts >= 0))) <= set(example.positions)
    }
    assert hit <= whole
    return hit


def test_copies_of_an_example_mask_the_same_words(copies) -> None:
    differ = 0
    for text in TEXTS[:60]:
        one, other = (masked_words(tokenizer, text, seed=9) for tokenizer in copies)
        assert one == other
        differ += one != masked_words(copies[0], text, seed=10)
    assert differ > 50


def test_a_short_text_has_one_mask_and_an_empty_one_none(copies) -> None:
    tokenizer = copies[0]
    short, empty = mask_texts(["yes", ""], [1, 2], tokenizer, max_length=64, masking=Masking(), seed=0)
    assert len(short.positions) >= 1
    assert len(empty.positions) == 0


def test_words_behind_the_cut_leave_something_to_guess(copies) -> None:
    for seed in range(30):
        example = mask_texts(
            [TEXTS[0]], [3], copies[0], max_length=6, masking=Masking(probability=0.01), seed=seed
        )[0]
        assert len(example.positions) >= 1


def test_expected_number_is_the_probability() -> None:
    starts = np.arange(5)
    found = [
        len(mask(starts + 9, starts, starts, example=e, seed=0, mask_id=4, ordinary_ids=np.array([9]), unit="tokens", probability=0.3).positions)
        for e in range(4000)
    ]  # fmt: skip
    assert abs(np.mean(found) - 1.5) < 0.05


def test_words_of_any_script() -> None:
    assert [word_starts(text).tolist() for text in ("don't go", "日本 語", "नमस्ते दुनिया", "안녕 하세요!")] == [
        [0, 3, 4, 6], [0, 1, 3], [0, 7], [0, 3, 6],
    ]  # fmt: skip
