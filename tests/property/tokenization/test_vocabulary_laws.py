"""The laws of DESIGN section 4, on vocabularies drawn by hypothesis."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from polydistill.tokenization.pieces import (
    ROLES,
    Piece,
    canonical,
    from_byte_level,
    from_metaspace,
    from_wordpiece,
    read_wordpiece,
    to_wordpiece,
)
from polydistill.tokenization.union import overlap, unite

# As in published vocabularies: any text, spaces, marks, control characters, special strings, nothing.
surfaces = st.one_of(
    st.text(min_size=0, max_size=6),
    st.sampled_from(
        ["##", "##a", "[MASK]", "[PAD]", "", " ", "▁", "Ġ", "\ue000", "\ue000a", "\ue001", "\x07", "a"]
    ),
)
pieces = st.builds(Piece, st.booleans(), surfaces)
entries = st.lists(st.one_of(st.none(), pieces), max_size=12)


def teacher(rows):
    """A vocabulary with the five roles in front."""
    return SimpleNamespace(
        pieces=[None] * 5 + list(rows), special_ids={role: i for i, role in enumerate(ROLES)}
    )


@given(pieces)
def test_wordpiece_writes_every_piece_and_reads_it_back(piece) -> None:
    assert read_wordpiece(to_wordpiece(piece)) == piece


@given(st.lists(pieces, unique=True, max_size=20))
def test_no_two_pieces_share_a_string(vocabulary) -> None:
    strings = [to_wordpiece(piece) for piece in vocabulary]
    assert len(set(strings)) == len(vocabulary)
    assert not {f"[{role.upper()}]" for role in ROLES} & set(strings)


@given(st.lists(entries, min_size=1, max_size=3))
def test_every_teacher_piece_has_one_student_id_and_ids_are_dense(vocabularies) -> None:
    teachers = [teacher(rows) for rows in vocabularies]
    union = unite(teachers)
    used = set(range(len(ROLES)))
    for source, mapping in zip(teachers, union.maps, strict=True):
        assert len(mapping) == len(source.pieces)
        for index, piece in enumerate(source.pieces):
            if piece is not None:
                assert union.pieces[mapping[index] - len(ROLES)] == piece
                used.add(int(mapping[index]))
            elif index >= len(ROLES):
                assert mapping[index] == ROLES.index("unk")
        assert [int(mapping[source.special_ids[role]]) for role in ROLES] == list(range(len(ROLES)))
    assert used == set(range(union.size))
    assert len(set(union.strings())) == union.size


@given(entries, entries)
def test_union_with_itself_changes_nothing_and_order_fixes_ids(first, other) -> None:
    alone, twice = unite([teacher(first)]), unite([teacher(first), teacher(first)])
    assert alone.pieces == twice.pieces
    assert np.array_equal(twice.maps[0], twice.maps[1])
    both = unite([teacher(first), teacher(other)])
    assert both.pieces[: len(alone.pieces)] == alone.pieces
    assert set(both.pieces) == set(unite([teacher(other), teacher(first)]).pieces)


@given(entries, entries)
def test_overlap_counts_shared_pieces(first, other) -> None:
    counts = overlap([teacher(first), teacher(other)])
    both = {p for p in first if p} & {p for p in other if p}
    # Piece is a named tuple of a bool and a string, never falsy by `if p`.
    assert counts[0, 1] == counts[1, 0] == len(both)
    assert counts[0, 0] == len({p for p in first if p is not None})


@given(entries)
def test_a_union_is_a_wordpiece_model(rows) -> None:
    union = unite([teacher(rows)])
    model = Tokenizer(models.WordPiece({s: i for i, s in enumerate(union.strings())}, unk_token="[UNK]"))
    assert model.get_vocab_size() == union.size


def test_canonical_pieces_of_each_kind() -> None:
    assert from_wordpiece("##ing") == Piece(False, "ing")
    assert from_wordpiece("ing") == Piece(True, "ing")
    assert from_metaspace("▁the") == Piece(True, "the")
    assert from_metaspace("the") == Piece(False, "the")
    assert from_byte_level("Ġthe") == Piece(True, "the")
    assert from_byte_level("Ã©") == Piece(False, "é")
    assert from_byte_level("Ã") == Piece(False, "<0xC3>")
    assert canonical("▁x", "unigram") == canonical("x", "wordpiece") == canonical("Ġx", "byte_level")
