"""Scripts of characters, and which of them stay in a vocabulary."""

import unicodedata
from collections import Counter

import pytest
from tests.unit.tokenization.test_trim import SPECIALS, choose, loaded, strings, wordpiece
from tokenizers import decoders, models, pre_tokenizers

from polydistill.tokenization.scripts import (
    ALWAYS,
    LEAST_SHARE,
    OTHER,
    SCRIPTS,
    count_characters,
    script_of,
    script_shares,
    written_scripts,
)
from polydistill.tokenization.selection import select
from polydistill.tokenization.trim import trim_tokenizer


@pytest.mark.parametrize(
    ("character", "script"),
    [
        *(
            ("a", "Latin"),
            ("é", "Latin"),
            ("ж", "Cyrillic"),
            ("ع", "Arabic"),
            ("字", "Han"),
            ("한", "Hangul"),
        ),
        *(
            ("か", "Hiragana"),
            ("カ", "Katakana"),
            ("ह", "Devanagari"),
            ("ᚠ", OTHER),
            ("1", None),
            ("!", None),
        ),
        *(("#", None), ("▁", None), ("\u0301", None), ("\ue000", None), ("€", None)),
    ],
)
def test_the_script_of_a_character(character, script) -> None:
    assert script_of(character) == script


def test_scripts_agree_with_the_names_of_letters() -> None:
    """Unicode's names of letters begin with their script."""
    for point in range(0x20, 0x3000):
        name = unicodedata.name(chr(point), "")
        for script in ("LATIN", "CYRILLIC", "GREEK", "HEBREW", "THAI", "TAMIL"):
            if name.startswith(f"{script} ") and " LETTER " in name and "MODIFIER" not in name:
                assert script_of(chr(point)) == script.capitalize(), name


def test_shares_are_of_letters_alone() -> None:
    counts: Counter[str] = Counter()
    assert list(count_characters(["aaab 123!", "жa"], counts)) == ["aaab 123!", "жa"]
    assert script_shares(counts) == pytest.approx({"Latin": 5 / 6, "Cyrillic": 1 / 6})
    assert script_shares({}) == {}


def test_a_script_stays_that_one_language_writes() -> None:
    assert written_scripts([{"Greek": 1.0}, {"Cyrillic": LEAST_SHARE, "Thai": LEAST_SHARE / 2}]) == {
        *ALWAYS,
        "Greek",
        "Cyrillic",
    }
    assert written_scripts([], ["Han"]) == {*ALWAYS, "Han"}
    assert len(set(SCRIPTS)) == len(SCRIPTS)


ENTRIES = [*SPECIALS, "a", "##a", "ж", "##ж", "да", "##字а", "1", "字", "##!"]


def test_characters_of_other_scripts_go_unless_text_uses_them() -> None:
    tokenizer = wordpiece(ENTRIES)
    selection = choose(tokenizer, "a ж", scripts={"Latin"})
    # `да` has characters without entries of their own, of one script that goes.
    assert strings(tokenizer, selection) == [*SPECIALS, "a", "##a", "ж", "1", "##!"]
    assert {
        script: [tokenizer.backend.id_to_token(i) for i in ids] for script, ids in selection.dropped.items()
    } == {"Cyrillic": ["##ж", "да"], "Han": ["##字а", "字"]}
    assert selection.reasons == {"special": 5, "characters": 4, "used": 1, "merges": 0}
    assert strings(tokenizer, choose(tokenizer, "a", scripts={"Latin", "Cyrillic", "Han"})) == ENTRIES
    assert choose(tokenizer, "a").dropped == {}
    # An entry of two scripts stays if one of them does.
    assert "##字а" in strings(tokenizer, choose(tokenizer, "a", scripts={"Latin", "Cyrillic"}))


def test_bytes_belong_to_no_script() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {string: index for index, string in enumerate([*SPECIALS, *alphabet])}
    tokenizer = loaded(models.BPE(vocabulary, []))
    tokenizer.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend.decoder = decoders.ByteLevel()
    tokenizer.__dict__.pop("spec", None)
    tokenizer.__dict__.pop("kind", None)
    assert tokenizer.kind == "byte_level"
    selection = select(tokenizer, {}, scripts=set())
    assert len(selection.kept) == len(vocabulary)
    rows = [(string, 0.0) for string in SPECIALS] + [(f"<0x{byte:02X}>", -5.0) for byte in range(256)]
    fallback = loaded(models.Unigram([*rows, ("ж", -2.0)], unk_id=3, byte_fallback=True))
    # Not even Latin stays: `<0x41>` is no text in it.
    selection = select(fallback, {}, scripts=set())
    assert selection.dropped == {"Cyrillic": [len(rows)]}
    # Its text is spelled in bytes then.
    assert trim_tokenizer(fallback, selection).backend.encode("ж").tokens[1:-1] == ["<0xD0>", "<0xB6>"]


def test_the_lowest_score_of_a_unigram_stays() -> None:
    """The score of an unknown character counts from it, even if its own piece is of a script that goes."""
    rows = [(string, 0.0) for string in SPECIALS] + [("a", -1.0), ("ж", -9.0)]
    tokenizer = loaded(models.Unigram(rows, unk_id=3))
    selection = select(tokenizer, {}, scripts={"Latin"})
    assert strings(tokenizer, selection)[-1] == "ж"
    assert selection.dropped == {}
