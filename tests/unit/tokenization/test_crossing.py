"""Pieces of one vocabulary in another, and tokens of two tokenizers over the same characters."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import bundled_lines
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from polydistill.tokenization.crossing import MAX_SPELLING, match, spell
from polydistill.tokenization.encode import Encoded, encode
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import STUDENT_SPECIALS
from polydistill.tokenization.wordpiece import train_wordpiece

ROLE_IDS = {role: index for index, role in enumerate(STUDENT_SPECIALS)}


def wordpiece(vocabulary, lowercase=True):
    tokenizer = Tokenizer(
        models.WordPiece(
            {piece: index for index, piece in enumerate([*STUDENT_SPECIALS.values(), *vocabulary])},
            unk_token="[UNK]",
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(STUDENT_SPECIALS.values()))
    return LoadedTokenizer("w", tokenizer, ROLE_IDS, 64)


def unigram(pieces):
    tokenizer = Tokenizer(
        models.Unigram([*((s, 0.0) for s in STUDENT_SPECIALS.values()), *pieces], unk_id=ROLE_IDS["unk"])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(STUDENT_SPECIALS.values()))
    return LoadedTokenizer("u", tokenizer, ROLE_IDS, 64)


def strings(spellings, teacher, student):
    return {
        teacher.backend.id_to_token(index): [
            student.backend.id_to_token(int(i)) for i in spellings.ids[index, :length]
        ]
        for index, length in enumerate(spellings.lengths)
        if length
    }


def test_pieces_are_spelled_where_they_stand() -> None:
    """At the start of a word and within one; a mark and an ideograph are words of their own."""
    teacher = wordpiece(["token", "##token", "##ize", "Ize", "##.", "中", "##中", "x", "##tox"])
    student = wordpiece(["tok", "##en", "##tok", "ize", "##ize", ".", "中", "##t"])
    assert strings(spell(teacher, student), teacher, student) == {
        "token": ["tok", "##en"],
        "##token": ["##tok", "##en"],
        "##ize": ["##ize"],
        "Ize": ["ize"],
        "##.": ["."],
        "中": ["中"],
        "##中": ["中"],
    }


def test_pieces_of_a_unigram_are_spelled_by_a_wordpiece_and_back() -> None:
    subword = unigram([("▁token", -1.0), ("ize", -1.0), (".", -1.0), ("▁tok", -2.0), ("en", -2.0)])
    words = wordpiece(["token", "##ize", ".", "tok", "##en"])
    assert strings(spell(subword, words), subword, words) == {
        "▁token": ["token"],
        "ize": ["##ize"],
        ".": ["."],
        "▁tok": ["tok"],
        "en": ["##en"],
    }
    back = strings(spell(words, subword), words, subword)
    assert back["token"] == ["▁token"]
    assert back["##ize"] == ["ize"]
    assert back["##en"] == ["en"]
    assert back["tok"] == ["▁tok"]


def test_a_vocabulary_spells_what_text_makes_of_it() -> None:
    """Every piece that a text of the teacher's own is cut into, as the student cuts the whole word."""
    lines = bundled_lines("en", 300) + bundled_lines("ru", 300)
    made = [
        train_wordpiece(lambda: lines, size=size, lowercase=True, strip_accents=["Latin"])
        for size in (400, 1500)
    ]
    small, large = (LoadedTokenizer(str(i), tokenizer, ROLE_IDS, 64) for i, tokenizer in enumerate(made))
    spellings = spell(large, small)
    whole = 0
    for word in sorted({word for line in lines for word in line.lower().split() if word.isalpha()}):
        pieces = large.backend.encode(word, add_special_tokens=False).ids
        if len(pieces) != 1 or large.special_ids["unk"] in pieces:
            continue
        expected = small.backend.encode(word, add_special_tokens=False).ids
        if len(expected) > MAX_SPELLING:
            continue
        whole += 1
        length = spellings.lengths[pieces[0]]
        assert spellings.ids[pieces[0], :length].tolist() == expected
    assert whole > 200
    # Within a word: greedily the longest piece, written here a second time.
    vocabulary = small.backend.get_vocab()
    for index, piece in enumerate(large.pieces):
        if piece is None or piece.starts_word or not piece.surface.isalpha():
            continue
        rest, expected = piece.surface, []
        while rest:
            size = next((n for n in range(len(rest), 0, -1) if "##" + rest[:n] in vocabulary), None)
            if size is None:
                expected = []
                break
            expected.append(vocabulary["##" + rest[:size]])
            rest = rest[size:]
        if len(expected) <= MAX_SPELLING:
            assert spellings.ids[index, : spellings.lengths[index]].tolist() == expected, piece


cuts = st.lists(st.integers(1, 4), min_size=1, max_size=8)


def cut(lengths, known=None):
    ends = np.cumsum(lengths)
    starts = np.concatenate([[0], ends[:-1]])
    inside = np.ones(len(lengths), dtype=bool) if known is None else np.array(known)
    framed = np.concatenate([[-1], starts, [-1]])
    return Encoded(
        np.arange(len(framed)),
        framed,
        np.concatenate([[0], ends, [0]]),
        np.concatenate([[False], inside, [False]]),
    )


@given(cuts, cuts, st.data())
def test_tokens_are_matched_by_their_characters(first, second, data) -> None:
    """Against a search of the graph of tokens that share a character."""
    known = data.draw(st.lists(st.booleans(), min_size=len(second), max_size=len(second)))
    teacher, student = cut(first), cut(second, known)
    masked = sorted(data.draw(st.sets(st.integers(1, len(first)))))
    spans = match(teacher, student, np.array(masked, dtype=np.int64))
    covers = {
        (kind, place): set(range(int(text.starts[place]), int(text.ends[place])))
        for kind, text, lengths in (("t", teacher, first), ("s", student, second))
        for place in range(1, len(lengths) + 1)
    }
    nodes = list(covers)
    expected = {}
    for node in nodes:
        if node[0] == "t":
            continue
        group, grown = {node}, True
        while grown:
            more = {other for other in nodes if any(covers[other] & covers[one] for one in group)} - group
            group |= more
            grown = bool(more)
        theirs = sorted(i for kind, i in group if kind == "t")
        ours = sorted(i for kind, i in group if kind == "s")
        hidden = [i for i in theirs if i in masked]
        if hidden and all(student.known[i] for i in ours):
            expected[node[1]] = (hidden[0], len(theirs), len(hidden), len(ours), ours.index(node[1]))
    assert {
        int(place): (int(a), int(b), int(c), int(d), int(e))
        for place, a, b, c, d, e in zip(*spans, strict=True)
    } == expected
    assert np.all(np.diff(spans.positions) > 0)


@pytest.mark.parametrize("text", ["", "  ", "x"])
def test_a_text_without_masks_has_no_positions(text) -> None:
    tokenizer = wordpiece(["x"])
    (encoded,) = encode(tokenizer, [text])
    spans = match(encoded, encoded, np.zeros(0, dtype=np.int64))
    assert all(len(part) == 0 for part in spans)
    assert SimpleNamespace(**spans._asdict()).positions.dtype == np.int64
