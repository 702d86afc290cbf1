"""Masks: shares, seeds, and the same words in every copy."""

import numpy as np
import pytest
from tests.conftest import bundled_lines
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizer

from polydistill.config.shared import Masking
from polydistill.masking import Maskable, mask, mask_texts, uniform
from polydistill.tokenization.encode import Encoded, encode, masking_units, word_starts
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer
from polydistill.tokenization.pieces import STUDENT_SPECIALS


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
        TEXTS,
        range(len(TEXTS)),
        tokenizer,
        max_length=64,
        masking=Masking(unit=unit, probability=0.15, random_share=0.1),
        seed=5,
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
    for example, encoded in zip(masked, encode(tokenizer, TEXTS), strict=True):
        encoded = encoded.cut(64)
        restored = example.input_ids.copy()
        restored[example.positions] = example.gold
        assert np.array_equal(restored, encoded.ids)
        assert not set(example.positions) & set(np.flatnonzero(encoded.starts < 0))


def masked_words(tokenizer, text, seed):
    encoded = encode(tokenizer, [text])[0]
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
        first, other = (masked_words(tokenizer, text, seed=9) for tokenizer in copies)
        assert first == other
        differ += first != masked_words(copies[0], text, seed=10)
    assert differ > 50


def test_a_short_text_is_masked_as_often_as_any_other(copies) -> None:
    """One word: in 15 % of its draws; three words: 0.45 of them on average; an empty text: never."""
    for text, words in (("yes", 1), ("the old house", 3), ("", 0)):
        masking = Masking(probability=0.15)
        drawn = mask_texts([text] * 4000, range(4000), copies[0], max_length=64, masking=masking, seed=0)
        tokens = len(drawn[0].input_ids) - 2
        assert tokens >= words
        share = sum(len(masked.positions) for masked in drawn) / max(1, tokens) / 4000
        assert abs(share - (0.15 if words else 0)) < 0.02


def test_words_behind_the_cut_are_drawn_like_the_others(copies) -> None:
    """A cut text is masked by its probability, without raising it so that something is masked."""
    drawn = mask_texts(
        [TEXTS[0]] * 3000, range(3000), copies[0], max_length=6, masking=Masking(probability=0.05), seed=1
    )
    assert {len(masked.input_ids) for masked in drawn} == {6}
    assert abs(sum(len(masked.positions) for masked in drawn) / (4 * 3000) - 0.05) < 0.01


def test_expected_number_is_the_probability() -> None:
    starts = np.arange(5)
    numbers = [
        len(masked.positions)
        for masked in mask(
            [Maskable(starts + 9, starts, starts, starts >= 0, example) for example in range(4000)],
            seed=0,
            mask_id=4,
            ordinary_ids=np.array([9]),
            unit="tokens",
            probability=0.3,
        )
    ]
    assert abs(np.mean(numbers) - 1.5) < 0.05


def test_words_of_any_script() -> None:
    assert [word_starts(text).tolist() for text in ("don't go", "日本 語", "नमस्ते दुनिया", "안녕 하세요!")] == [
        [0, 3, 4, 6],
        [0, 1, 3],
        [0, 7],
        [0, 3, 6],
    ]


CHINESE = [
    "我们的朋友今天来到北京大学学习汉语和历史。",
    "今天天气很好，我们去公园散步吧！",
    "他说他明天早上八点钟坐火车去上海。",
    "这本书是我最喜欢的一本小说，作者是中国人。",
    "学生们在图书馆里安静地看书写字。",
    "昨天晚上我和朋友一起吃饭聊天。",
]


@pytest.fixture(scope="module")
def across():
    """Two tokenizers of Chinese: one piece for each character, and pieces that span word boundaries."""
    characters = sorted({character for text in CHINESE for character in text})
    vocabulary = {piece: index for index, piece in enumerate([*STUDENT_SPECIALS.values(), *characters])}
    single = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    single.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    single.normalizer = normalizers.BertNormalizer(lowercase=False)
    pieces = [("[PAD]", 0.0), ("[UNK]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[MASK]", 0.0)]
    long = {text[place : place + 3] for text in CHINESE for place in range(0, len(text) - 3, 4)}
    pieces += [(piece, -3.0) for piece in sorted(long)] + [(piece, -8.0) for piece in characters]
    spanning = Tokenizer(models.Unigram(pieces, unk_id=1))
    ids = {role: index for index, role in enumerate(("pad", "unk", "cls", "sep", "mask"))}
    own = {role: vocabulary[token] for role, token in STUDENT_SPECIALS.items()}
    return [LoadedTokenizer("single", single, own, 512), LoadedTokenizer("spanning", spanning, ids, 512)]


def masked_characters(tokenizer, beside, text, example, **masking) -> set[int]:
    (masked,) = mask_texts(
        [text], [example], tokenizer, max_length=512, masking=Masking(**masking), seed=4, beside=beside
    )
    (encoded,) = encode(tokenizer, [text])
    return {c for p in masked.positions for c in range(encoded.starts[p], encoded.ends[p])}


def test_copies_mask_the_same_characters_where_pieces_span_words(across) -> None:
    """Intersection over union of the masked characters; without the other's pieces it is far below 1."""
    single, spanning = across
    shared, alone = [0, 0], [0, 0]
    for number, text in enumerate(CHINESE * 20):
        for counts, besides in ((shared, ([spanning], [single])), (alone, ([], []))):
            first, other = (
                masked_characters(tokenizer, beside, text, number)
                for tokenizer, beside in zip(across, besides, strict=True)
            )
            counts[0] += len(first & other)
            counts[1] += len(first | other)
    assert shared[0] == shared[1] > 200
    assert alone[0] / alone[1] < 0.7


def test_a_unit_is_the_words_that_share_a_piece_of_any_copy() -> None:
    """By hand: `ab cd ef` with a piece over `b cd`, in one copy of two."""

    def copy(*spans: tuple[int, int], unknown: int | None = None) -> Encoded:
        starts, ends = (np.array([-1, *column, -1]) for column in zip(*spans, strict=True))
        ids = np.arange(len(starts)) + 10
        known = starts >= 0
        if unknown is not None:
            known[1 + unknown] = False
        return Encoded(ids, starts, ends, known)

    plain = copy((0, 2), (3, 5), (6, 8))
    assert masking_units("ab cd ef", [plain])[0].tolist() == [0, 3, 6]
    units, maskable = masking_units("ab cd ef", [plain, copy((0, 1), (1, 5), (6, 8))])
    assert units.tolist() == [0, 6]
    assert maskable.tolist() == [True, True]
    # A word that one copy does not know is masked in none.
    units, maskable = masking_units("ab cd ef", [plain, copy((0, 2), (3, 5), (6, 8), unknown=1)])
    assert units.tolist() == [0, 3, 6]
    assert maskable.tolist() == [True, False, True]
    assert [array.tolist() for array in masking_units("", [Encoded(*[np.zeros(0, dtype=np.int64)] * 4)])] == [
        [],
        [],
    ]


def test_what_a_tokenizer_does_not_know_is_never_hidden(copies) -> None:
    tokenizer = copies[0]
    unk = tokenizer.special_ids["unk"]
    text = "the ☃ house ☃ and ☃ the ☃ garden"
    assert encode(tokenizer, [text])[0].ids.tolist().count(unk) == 4
    for unit in ("words", "tokens"):
        drawn = mask_texts(
            [text] * 500,
            range(500),
            tokenizer,
            max_length=64,
            masking=Masking(unit=unit, probability=0.5),
            seed=0,
        )
        gold = np.concatenate([masked.gold for masked in drawn])
        assert len(gold) > 500
        assert unk not in gold


def test_special_tokens_in_a_text_are_text(copies, across) -> None:
    """A literal [MASK], [SEP], [PAD] is no control token and no gold token, even if a Unigram has it as a
    piece.
    """
    for tokenizer in (copies[0], across[1]):
        control = set(tokenizer.special_ids.values()) - {tokenizer.special_ids["unk"]}
        text = "the [MASK] house [SEP] and [PAD][CLS] garden 今天 [MASK]"
        (encoded,) = encode(tokenizer, [text])
        assert not control & set(encoded.ids[encoded.starts >= 0].tolist())
        drawn = mask_texts(
            [text] * 200, range(200), tokenizer, max_length=64, masking=Masking(probability=0.5), seed=0
        )
        assert not control & set(np.concatenate([masked.gold for masked in drawn]).tolist())


def test_a_literal_mask_is_made_of_ordinary_pieces() -> None:
    """A WordPiece that knows its letters reads them; its library would make one control token of them."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "[", "]", "mask", "house"]
    backend = BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}).backend_tokenizer
    tokenizer = LoadedTokenizer(
        "bert", backend, {role: pieces.index(piece) for role, piece in STUDENT_SPECIALS.items()}, 512
    )
    (encoded,) = encode(tokenizer, ["the [MASK] house"])
    assert [pieces[index] for index in encoded.ids] == ["[CLS]", "the", "[", "mask", "]", "house", "[SEP]"]
    assert encoded.known.tolist() == [False, True, True, True, True, True, False]


def test_a_cut_keeps_the_frame_and_the_first_tokens(copies) -> None:
    (whole,) = encode(copies[0], [TEXTS[0]])
    backend = copies[0].backend
    for length in (2, 3, 7, len(whole.ids), len(whole.ids) + 5):
        backend.enable_truncation(length)
        expected = backend.encode(TEXTS[0])
        backend.no_truncation()
        assert whole.cut(length).ids.tolist() == expected.ids


def mask_alone(text, *, seed, mask_id, ordinary_ids, unit, probability, mask_share, random_share):
    """One text's masks, unit by unit: (input ids, positions)."""
    where = [place for place, start in enumerate(text.starts) if start >= 0]
    if unit == "words":
        unit_of = [max(0, int(np.sum(text.words <= text.starts[place])) - 1) for place in where]
        units = [int(word) for word in text.words]
        drawable = [index for index, allowed in enumerate(text.maskable) if allowed]
    else:
        units = sorted({int(text.starts[place]) for place in where})
        unit_of = [units.index(text.starts[place]) for place in where]
        drawable = list(range(len(units)))

    def draw(key, stream):
        return float(uniform(seed, text.example, np.array([key]), stream)[0])

    number = int(probability * len(drawable) + draw(0, 4))
    chosen = sorted(drawable, key=lambda index: draw(units[index], 1))[:number]
    ids, positions = text.ids.copy(), []
    for place, index in zip(where, unit_of, strict=True):
        if index not in chosen:
            continue
        positions.append(place)
        action = draw(units[index], 2)
        if action < mask_share:
            ids[place] = mask_id
        elif action < mask_share + random_share:
            ids[place] = ordinary_ids[int(draw(place, 3) * len(ordinary_ids))]
    return ids, positions


@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_masks_of_many_texts_are_those_of_each_alone(copies, unit) -> None:
    """Texts of all lengths, cut ones, some without a token that may be masked, with ids of 64 bits."""
    draw = np.random.default_rng(0)
    settings = {
        "seed": 11,
        "mask_id": 4,
        "ordinary_ids": copies[0].ordinary_ids,
        "unit": unit,
        "probability": 0.3,
        "mask_share": 0.6,
        "random_share": 0.2,
    }
    texts = []
    for index, text in enumerate([*TEXTS[:60], "", "a", *(text[:20] for text in TEXTS[:20])]):
        encoded = encode(copies[0], [text])[0].cut(40)
        words = word_starts(text)
        known = encoded.known & (draw.random(len(encoded.ids)) < (0.9 if index % 7 else 0.0))
        maskable = draw.random(len(words)) < 0.8
        texts.append(
            Maskable(
                encoded.ids, np.where(known, encoded.starts, -1), words, maskable, 2**64 - 1 - 977 * index
            )
        )
    # Two pieces of a text of blanks, where no word begins, and a piece before a text's first word.
    none = np.zeros(0, dtype=np.int64)
    pieces = np.array([7, 8])
    for place in range(0, 60, 2):
        texts.insert(place, Maskable(pieces, np.array([0, 1]), none, none > 0, place))
        texts.insert(place, Maskable(pieces, np.array([0, 3]), np.array([3]), np.array([True]), 1000 + place))
    together = mask(texts, **settings)
    assert len(together) == len(texts)
    for text, made in zip(texts, together, strict=True):
        if unit == "words" and not len(text.words):
            assert not len(made.positions)
            continue
        ids, positions = mask_alone(text, **settings)
        assert made.positions.tolist() == positions
        assert made.input_ids.tolist() == ids.tolist()
        assert made.gold.tolist() == text.ids[positions].tolist()
    assert sum(len(made.positions) for made in together) > 300
    assert mask([], **settings) == []
