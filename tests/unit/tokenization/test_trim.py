"""Trimming, by examples small enough to check by hand."""

import json
from collections.abc import Iterable

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from polydistill.disk import hash_text
from polydistill.errors import RecipeError, TokenizerError
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.selection import Entries, document_frequency, select
from polydistill.tokenization.trim import compare_trimmed, trim_tokenizer
from polydistill.tools.trim import HELD_APART_ONE_IN, hold_apart

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROLES = dict(zip(("cls", "pad", "sep", "unk", "mask"), SPECIALS, strict=True))


def loaded(model: object, *, added: Iterable[AddedToken] = (), splitter: object = None) -> LoadedTokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = splitter or pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    backend.add_tokens(list(added))
    ids = {role: backend.token_to_id(string) for role, string in ROLES.items()}
    backend.post_processor = processors.RobertaProcessing(("</s>", ids["sep"]), ("<s>", ids["cls"]))
    return LoadedTokenizer("made", backend, ids, 64)


def wordpiece(entries: list[str], **options: object) -> LoadedTokenizer:
    vocabulary = {
        string: index for index, string in enumerate([*entries, *(s for s in SPECIALS if s not in entries)])
    }
    return loaded(models.WordPiece(vocabulary, unk_token="<unk>"), **options)


def bpe(
    letters: str, merges: list[tuple[str, str]], *, more: Iterable[str] = (), **options: object
) -> LoadedTokenizer:
    strings = dict.fromkeys([*SPECIALS, *letters, *("".join(pair) for pair in merges), *more])
    vocabulary = {string: index for index, string in enumerate(strings)}
    return loaded(models.BPE(vocabulary, merges, unk_token="<unk>", **options))


def choose(tokenizer: LoadedTokenizer, *lines: str, **options: object):
    return select(tokenizer, {"x": document_frequency(tokenizer.backend, lines, tokenizer.size)}, **options)


def strings(tokenizer: LoadedTokenizer, selection) -> list[str]:
    return [tokenizer.backend.id_to_token(int(index)) for index in selection.kept]


@pytest.mark.parametrize(
    ("merges", "piece", "parts"),
    [
        ([("b", "c"), ("a", "bc"), ("a", "b"), ("ab", "c")], "abc", {"a", "b", "c", "bc"}),
        ([("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")], "abc", {"a", "b", "c", "ab"}),
        # Of equal ranks the left comes first, or "aaa" would fall apart into "a" and "aa".
        ([("a", "a"), ("aa", "a")], "aaa", {"a", "aa"}),
        # No merge ends there: text has it only as a whole word, if at all.
        ([("a", "b"), ("b", "c"), ("a", "bc")], "abc", set()),
    ],
)
def test_a_merged_piece_needs_the_parts_that_the_model_takes(merges, piece, parts) -> None:
    entries = Entries(bpe("abc", merges))
    assert {entries.strings[index] for index in entries.parts(entries.ids[piece])} == parts


def test_a_whole_word_of_ignore_merges_needs_no_parts() -> None:
    tokenizer = bpe("abc", [("a", "b")], more=["abc"], ignore_merges=True)
    selection = choose(tokenizer, "abc")
    assert strings(tokenizer, selection) == [*SPECIALS, "a", "b", "c", "abc"]
    assert trim_tokenizer(tokenizer, selection).backend.encode("abc acb").tokens[1:-1] == [
        "abc",
        "a",
        "c",
        "b",
    ]


def test_merges_with_a_prefix_and_a_suffix() -> None:
    vocabulary = [*SPECIALS, "a", "##b", "##b</w>", "ab", "ab##b</w>", "abb</w>", "a</w>"]
    model = models.BPE(
        {string: index for index, string in enumerate(vocabulary)},
        [("a", "##b"), ("ab", "##b</w>")],
        unk_token="<unk>",
        continuing_subword_prefix="##",
        end_of_word_suffix="</w>",
    )
    tokenizer = loaded(model)
    assert tokenizer.backend.encode("abb").tokens[1:-1] == ["abb</w>"]
    selection = choose(tokenizer, "abb")
    assert strings(tokenizer, selection) == [*SPECIALS, "a", "##b", "##b</w>", "ab", "abb</w>", "a</w>"]
    assert trim_tokenizer(tokenizer, selection).backend.encode("abb").tokens[1:-1] == ["abb</w>"]


def test_the_score_of_the_unknown_stays() -> None:
    """b c a字 (-27) or bca and an unknown 字? That counts from the lowest score, which only the dropped `zz`
    has.
    """
    rows = [("b", -9.0), ("c", -9.0), ("a字", -9.0), ("bca", -1.0), ("a", -1.0), ("zz", -30.0), ("z", -1.0)]
    tokenizer = loaded(models.Unigram([(s, 0.0) for s in SPECIALS] + rows, unk_id=3))
    assert tokenizer.backend.encode("bca字").tokens[1:-1] == ["b", "c", "a字"]
    selection = choose(tokenizer, "b")
    assert "bca" not in strings(tokenizer, selection)
    selection = choose(tokenizer, "b", "bca")
    trimmed = trim_tokenizer(tokenizer, selection).backend
    assert trimmed.encode("bca字").tokens[1:-1] == ["b", "c", "a字"]
    assert trimmed.encode("字").ids[1:-1] == [3]


def test_a_word_that_was_unknown_may_become_known_and_says_nothing_against_the_law() -> None:
    """`abc` is unknown: `ab` is taken and there is no `##c`. Without `ab` it is a ##bc."""
    tokenizer = wordpiece([*SPECIALS, "a", "b", "##b", "##bc", "ab"])
    assert tokenizer.backend.encode("abc").tokens[1:-1] == ["<unk>"]
    selection = choose(tokenizer, "a")
    trimmed = trim_tokenizer(tokenizer, selection).backend
    assert trimmed.encode("abc").tokens[1:-1] == ["a", "##bc"]
    measured, held, differing = compare_trimmed(tokenizer, trimmed, selection, ["abc", "a abc", "b"])
    assert (held, differing) == (["b", "a"], [])
    assert (measured.kept_texts, measured.shortened_texts, measured.identical_texts) == (1, 1, 2)
    assert measured.holds
    assert measured.unknown_share == pytest.approx(2 / 4)
    assert measured.unknown_characters == pytest.approx(6 / 9)
    assert measured.trimmed_unknown_share == 0
    assert (measured.fertility, measured.trimmed_fertility) == (1.0, 6 / 4)
    assert measured.kept_tokens == 1.0


def test_a_difference_is_found() -> None:
    tokenizer = wordpiece([*SPECIALS, "a", "##b", "ab"])
    selection = choose(tokenizer, "ab")
    other = wordpiece([*SPECIALS, "a", "##b", "abb"]).backend
    measured, _, differing = compare_trimmed(tokenizer, other, selection, ["ab", "a"])
    assert differing == ["ab"]
    assert not measured.holds


LETTERS = [*SPECIALS, "a", "b", "c", "##a", "##b", "##c"]


def test_size_takes_the_most_frequent_and_of_equal_ones_the_first() -> None:
    tokenizer = wordpiece([*LETTERS, "ab", "bc", "ca", "cc"])
    lines = ["ca ab", "ca bc", "bc ab", "ca"]
    assert strings(tokenizer, choose(tokenizer, *lines, size=11)) == LETTERS
    assert strings(tokenizer, choose(tokenizer, *lines, size=12)) == [*LETTERS, "ca"]
    assert strings(tokenizer, choose(tokenizer, *lines, size=13)) == [*LETTERS, "ab", "ca"]
    # Pieces that no text uses do not fill up the vocabulary.
    assert strings(tokenizer, choose(tokenizer, *lines, size=99)) == [*LETTERS, "ab", "bc", "ca"]
    with pytest.raises(
        RecipeError, match=r"size 10: made keeps at least 11 pieces \(5 special.*6 characters.*; use 11"
    ):
        choose(tokenizer, *lines, size=10)


def test_size_counts_the_parts_of_merges() -> None:
    tokenizer = bpe("abc", [("a", "b"), ("ab", "c"), ("c", "c")])
    lines = ["abc", "abc", "cc"]
    assert strings(tokenizer, choose(tokenizer, *lines, size=10))[8:] == ["ab", "abc"]
    assert choose(tokenizer, *lines, size=10).reasons == {
        "special": 5,
        "characters": 3,
        "used": 1,
        "merges": 1,
    }
    # `abc` needs two places: the next that fits is taken.
    assert strings(tokenizer, choose(tokenizer, *lines, size=9))[8:] == ["cc"]


def test_share_counts_by_the_language_that_uses_a_piece_most() -> None:
    tokenizer = wordpiece([*LETTERS, "ab", "bc", "ca"])
    frequencies = {
        "large": document_frequency(tokenizer.backend, ["ab ab"] * 99 + ["ca"], tokenizer.size),
        "small": document_frequency(tokenizer.backend, ["bc", "a"], tokenizer.size),
    }
    assert frequencies["large"].counts[
        [tokenizer.backend.token_to_id(s) for s in ("ab", "ca", "bc")]
    ].tolist() == [99, 1, 0]
    assert strings(tokenizer, select(tokenizer, frequencies, min_document_share=0.02)) == [
        *LETTERS,
        "ab",
        "bc",
    ]
    assert strings(tokenizer, select(tokenizer, frequencies, min_document_share=0.01)) == [
        *LETTERS,
        "ab",
        "bc",
        "ca",
    ]
    assert strings(tokenizer, select(tokenizer, frequencies, size=13)) == [*LETTERS, "ab", "bc"]


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_a_share_that_is_none(share) -> None:
    with pytest.raises(RecipeError, match=r"min_document_share .*not a share"):
        choose(wordpiece(LETTERS), "a", min_document_share=share)


def test_one_choice_not_two() -> None:
    with pytest.raises(RecipeError, match=r"size 20: min_document_share 0\.5 is set too"):
        choose(wordpiece(LETTERS), "a", min_document_share=0.5, size=20)


def test_words_alone_cannot_be_trimmed() -> None:
    vocabulary = {string: index for index, string in enumerate([*SPECIALS, "a"])}
    with pytest.raises(TokenizerError, match="a wordlevel tokenizer cannot be trimmed"):
        choose(loaded(models.WordLevel(vocabulary, unk_token="<unk>")), "a")


def test_added_tokens_and_the_padding_id() -> None:
    """A piece before pad goes, and pad keeps its id; added tokens after the model's stay after it; unused
    slots go.
    """
    tokenizer = wordpiece(
        [*"abc", "ab", "bc", "<pad>", "##a", "##b", "##c"],
        added=[AddedToken("<new>", lstrip=True), AddedToken("[unused7]")],
    )
    selection = choose(tokenizer, "bc", fixed_id=5)
    trimmed = trim_tokenizer(tokenizer, selection)
    assert strings(tokenizer, selection) == [
        "a",
        "b",
        "c",
        "bc",
        "##a",
        "<pad>",
        "##b",
        "##c",
        "<s>",
        "</s>",
        "<unk>",
        "<mask>",
        "<new>",
    ]
    assert trimmed.special_ids["pad"] == 5
    assert trimmed.backend.encode("bc <new>a [unused7]").tokens[1:4] == ["bc", " <new>", "a"]
    assert trimmed.backend.encode("a").ids == [trimmed.special_ids["cls"], 0, trimmed.special_ids["sep"]]
    # Unless no piece can go before it.
    assert choose(tokenizer, "bc").kept.tolist() == sorted(choose(tokenizer, "bc").kept)


def test_a_unigram_that_lists_a_string_twice() -> None:
    rows = [("a", -1.0), ("b", -1.0), ("ab", -3.0), ("ab", -1.5), ("ba", -0.5)]
    tokenizer = loaded(models.Unigram([(s, 0.0) for s in SPECIALS] + rows, unk_id=3))
    selection = choose(tokenizer, "ab")
    trimmed = trim_tokenizer(tokenizer, selection)
    mapping = selection.mapping(tokenizer.size)
    for text in ("ab", "ab aab", "x"):
        assert trimmed.backend.encode(text).ids == mapping[tokenizer.backend.encode(text).ids].tolist()
    assert "ba" not in strings(tokenizer, selection)
    assert np.all(np.diff(selection.kept) > 0)


def test_byte_pieces_and_the_unknown_stay() -> None:
    """Even with letters that spell `<0x41>`; and dropped rows before them move unk's id."""
    rows = [(s, -1.0) for s in ("aa", "a", *"<0x>ABCDEF123456789")]
    rows += [*((s, 0.0) for s in SPECIALS), *((f"<0x{byte:02X}>", -5.0) for byte in range(256))]
    unk = [string for string, _ in rows].index("<unk>")
    for fallback, pieces in ((True, ["<0xE5>", "<0xAD>", "<0x97>"]), (False, ["<unk>"])):
        tokenizer = loaded(models.Unigram(rows, unk_id=unk, byte_fallback=fallback))
        selection = choose(tokenizer, "a")
        assert len(selection.kept) == len(rows) - 1
        trimmed = trim_tokenizer(tokenizer, selection).backend
        assert [trimmed.id_to_token(index) for index in trimmed.encode("a字").ids[1:-1]] == ["a", *pieces]
        assert json.loads(trimmed.to_str())["model"]["byte_fallback"] == fallback


def test_lines_are_held_apart_by_content_alone() -> None:
    lines = [f"line {number}" for number in range(2000)]
    held: list[tuple[int, str]] = []
    left = list(hold_apart(lines, held, 30))
    apart = {text for _, text in held}
    assert len(apart) == 30
    # Not a hash table's order: the same lines in every process.
    assert all(hash_text(text) % HELD_APART_ONE_IN == 0 for text in apart)
    assert 1800 < len(left) < 1960
    assert not apart & set(left)
    # Another order, and duplicate lines, change nothing.
    again: list[tuple[int, str]] = []
    assert sorted(set(hold_apart([*reversed(lines), *lines], again, 30))) == sorted(left)
    assert {text for _, text in again} == apart
