"""Accents stripped by script: what changes, and what must not."""

import pytest
from transformers import AutoTokenizer

from polydistill.errors import TokenizerError
from polydistill.tokenization.pieces import STUDENT_SPECIALS
from polydistill.tokenization.wordpiece import save_tokenizer, train_wordpiece

LINES = ["été Việt", "Ελλάς ёлка", "हिन्दी कुछ", "తెలుగు", "한국어", "اُردو", "ete viet ελλας елка"] * 3


def normalised(strip_accents, text: str) -> str:
    tokenizer = train_wordpiece(lambda: LINES, size=300, lowercase=True, strip_accents=strip_accents)
    return tokenizer.normalizer.normalize_str(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Été Việt Nam", "ete viet nam"),
        ("Ελλάς ἄνθρωπος", "ελλας ανθρωπος"),
        ("Ёлка", "елка"),
        ("हिन्दी कुछ", "हिन्दी कुछ"),
        ("తెలుగు", "తెలుగు"),
        ("한국어", "한국어"),
        ("اُردو", "اُردو"),
        # Decomposed text gives the same as composed text.
        ("e\u0301te\u0301", "ete"),
        ("\u1112\u1161\u11ab", "한"),
    ],
)
def test_named_scripts_lose_their_marks_and_others_keep_them(text, wanted) -> None:
    assert normalised(["Latin", "Greek", "Cyrillic"], text) == wanted


def test_the_other_choices() -> None:
    assert normalised([], "Été") == "été"
    assert normalised(False, "Été") == "été"
    assert normalised(None, "Été") == "ete"
    assert normalised(["Greek"], "Été Ελλάς") == "été ελλας"
    # BERT's own stripping removes vowels from Hindi.
    assert normalised(True, "कुछ") == "कछ"


def test_transformers_loads_it(tmp_path) -> None:
    tokenizer = train_wordpiece(lambda: LINES, size=300, lowercase=True, strip_accents=["Latin"])
    save_tokenizer(tokenizer, tmp_path, specials=STUDENT_SPECIALS, max_length=32)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.tokenize("Été") == loaded.tokenize("ete")
    assert loaded.tokenize("कुछ") != loaded.tokenize("कछ")


def test_a_script_that_the_library_does_not_know_is_named() -> None:
    with pytest.raises(TokenizerError, match="Elvish"):
        normalised(["Elvish"], "a")
