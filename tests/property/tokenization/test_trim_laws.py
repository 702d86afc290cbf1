"""The laws of trimming (DESIGN section 4), on vocabularies and texts drawn by hypothesis."""

import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.selection import Entries, Frequency, document_frequency, select
from polydistill.tokenization.trim import compare_trimmed, trim_tokenizer

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROLES = dict(zip(("cls", "pad", "sep", "unk", "mask"), SPECIALS, strict=True))
# Few letters, so that pieces and texts meet; one of two bytes, and one that few vocabularies have.
lines_of = st.lists(st.text("aaabbbcé 字", max_size=12), min_size=1, max_size=6)


def finish(backend: Tokenizer, specials: Iterable[str] = SPECIALS) -> LoadedTokenizer:
    backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    ids = {role: backend.token_to_id(string) for role, string in ROLES.items()}
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["cls"]), ("</s>", ids["sep"])]
    )
    return LoadedTokenizer("made", backend, ids, 64)


def made_wordpiece(entries: list[str]) -> LoadedTokenizer:
    """Any entries: words become unknown where characters have no entry of their own."""
    vocabulary = {string: index for index, string in enumerate(dict.fromkeys([*SPECIALS, *entries]))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=9))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return finish(backend)


def made_unigram(scored: dict[str, float]) -> LoadedTokenizer:
    rows = [(s, 0.0) for s in SPECIALS] + [(s, v) for s, v in scored.items() if s not in SPECIALS]
    backend = Tokenizer(models.Unigram(rows, unk_id=3, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return finish(backend)


def made_bpe(
    choices: list[tuple[int, int]], *, byte_level: bool, order: int = 0, **options: object
) -> LoadedTokenizer:
    """Merges of entries that exist by then; `order` shuffles their ranks, as no training would."""
    vocabulary = {
        string: index for index, string in enumerate([*SPECIALS, *(ALPHABET if byte_level else "abcé▁")])
    }
    letters = list("abĠÃ©" if byte_level else "abcé▁")
    merges = []
    for left, right in choices:
        pair = letters[left % len(letters)], letters[right % len(letters)]
        if pair not in merges and len("".join(pair)) < 9:
            merges.append(pair)
            if "".join(pair) not in vocabulary:
                vocabulary["".join(pair)] = len(vocabulary)
                letters.append("".join(pair))
    random.Random(order).shuffle(merges) if order else None
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=None if byte_level else "<unk>", **options))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    if byte_level:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    return finish(backend)


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
words = st.text("abc", min_size=1, max_size=4)
entries = st.builds(lambda lead, word: lead + word, st.sampled_from(["", "##"]), words)
scores = st.sampled_from([-1.0, -2.0, -2.5, -4.0, -9.0])
choices = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=5, max_size=40)
KINDS = {
    "wordpiece": st.builds(made_wordpiece, st.lists(entries, min_size=5, max_size=25)),
    "unigram": st.builds(
        made_unigram,
        st.dictionaries(st.text("abcé▁", min_size=1, max_size=4), scores, min_size=5, max_size=25),
    ),
    "byte_level": st.builds(
        lambda c, o, i: made_bpe(c, byte_level=True, order=o, ignore_merges=i),
        choices,
        st.integers(0, 9),
        st.booleans(),
    ),
    "bpe": st.builds(
        lambda c, o, f: made_bpe(c, byte_level=False, order=o, fuse_unk=f),
        choices,
        st.integers(0, 9),
        st.booleans(),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_text_whose_pieces_are_kept_gets_the_same_pieces(kind, data) -> None:
    tokenizer = data.draw(KINDS[kind])
    assert tokenizer.kind == kind
    known, other = data.draw(lines_of), data.draw(lines_of)
    selection = select(tokenizer, {"x": document_frequency(tokenizer.backend, known, tokenizer.size)})
    trimmed = trim_tokenizer(tokenizer, selection)
    mapping = selection.mapping(tokenizer.size)
    assert sorted(trimmed.backend.get_vocab().values()) == list(range(len(selection.kept)))
    assert sum(selection.reasons.values()) == len(selection.kept)
    for role, index in trimmed.special_ids.items():
        assert trimmed.backend.id_to_token(index) == ROLES[role]
    measured, held, differing = compare_trimmed(tokenizer, trimmed.backend, selection, [*known, *other])
    assert differing == []
    assert measured.identical_texts == len(held)
    # Checked without `compare_trimmed`: the text of the selection, except a WordPiece's unknown words (see
    # there).
    for line in known:
        ids = np.array(tokenizer.backend.encode(line).ids)
        if kind != "wordpiece" or tokenizer.special_ids["unk"] not in ids:
            assert trimmed.backend.encode(line).ids == mapping[ids].tolist()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_character_becomes_unknown(kind, data) -> None:
    """If only the obligatory pieces are kept, no known text becomes unknown."""
    tokenizer = data.draw(KINDS[kind])
    nothing = np.zeros(tokenizer.size, dtype=np.int64)
    trimmed = trim_tokenizer(tokenizer, select(tokenizer, {"x": Frequency(nothing, 1)})).backend
    entries = Entries(tokenizer)
    for line in data.draw(lines_of):
        for word in line.split():
            # A WordPiece without an entry for each of the word's characters may know the word or not.
            forms = entries.atoms(word) if kind == "wordpiece" else []
            if tokenizer.special_ids["unk"] not in tokenizer.backend.encode(word).ids and all(
                f in entries.ids for f in forms
            ):
                assert trimmed.token_to_id("<unk>") not in trimmed.encode(word).ids
    for string in entries.ids.keys() - set(SPECIALS):
        if kind != "bpe" and not string.startswith("##"):
            text = string if kind != "byte_level" else tokenizer.backend.decode([entries.ids[string]])
            known = tokenizer.special_ids["unk"] not in tokenizer.backend.encode(text).ids
            assert not known or trimmed.token_to_id("<unk>") not in trimmed.encode(text).ids
