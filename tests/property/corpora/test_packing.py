"""Laws of packing and of blocks, for tokenizers and texts of every kind."""

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polydistill.config.shared import Source
from polydistill.corpora.packing import pack
from polydistill.corpora.sources import read_documents
from polydistill.disk import hash_text

# How the counts of lines relate to that of the joined text differs between tokenizers.
COUNTERS = {
    "characters and line ends": lambda texts: [len(text) for text in texts],
    "words": lambda texts: [len(text.split()) for text in texts],
    "line ends are dear": lambda texts: [len(text) + 4 * text.count("\n") for text in texts],
    "one mark before each text": lambda texts: [1 + len(text.split()) for text in texts],
    "line ends merge letters": lambda texts: [len(text) - 2 * text.count("\na") for text in texts],
    "lines of b are dear together": lambda texts: [len(text) + 5 * text.count("b\nb") for text in texts],
}

line = (
    st.text(alphabet="ab e\u0308字कि", min_size=1, max_size=50)
    .map(lambda t: " ".join(t.split()))
    .filter(bool)
)


def squeezed(texts: list[str]) -> str:
    return "".join("".join(text.split()) for text in texts)


@pytest.mark.parametrize("counter", COUNTERS)
@settings(deadline=None)
@given(st.lists(st.tuples(line, st.integers(0, 2)), max_size=20), st.integers(7, 30))
def test_no_example_is_too_long_and_none_loses_text(counter, lines, room) -> None:
    count = COUNTERS[counter]
    examples = list(pack(lines, count, room))
    assert [tokens for _, tokens in examples] == count([text for text, _ in examples])
    assert all(tokens <= room for _, tokens in examples)
    assert all(text == text.strip() and text for text, _ in examples)
    assert squeezed([text for text, _ in examples]) == squeezed([text for text, _ in lines])


def keys_of(lines: list[str]) -> dict[str, int]:
    """Line → the key of its block."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.txt"
        path.write_text("\n".join(lines) + "\n")
        documents = read_documents([Source(path=str(path))], Counter(), field="x", block_lines=4)
        return {text: document.key for document in documents for text in document.lines}


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 500).map(lambda n: f"line {n}"), min_size=5, max_size=100, unique=True),
    st.lists(st.integers(501, 999).map(lambda n: f"line {n}"), max_size=150, unique=True),
    st.integers(0, 100),
)
def test_ordinary_lines_within_a_block_move_nothing(lines, added, place) -> None:
    ordinary = [text for text in [*added, ""] if not text or hash_text(text) % 4]
    place = min(1 + place, len(lines))
    before, after = keys_of(lines), keys_of(lines[:place] + ordinary + lines[place:])
    assert {text: after[text] for text in before} == before


@pytest.mark.parametrize("text", ["", "ab e\u0308字कि ", "ab "], ids=["one word", "no blanks", "words"])
def test_a_line_of_any_length_takes_time_in_proportion(text) -> None:
    """Counted characters for lines of 20,000 and 160,000: eight times as many, not sixty-four."""
    counted = {}
    for size in (20_000, 160_000):
        whole = ((text or "x") * size)[:size].strip()
        seen = [0]

        def count(texts: list[str], seen: list[int] = seen) -> list[int]:
            seen[0] += sum(map(len, texts))
            return [len(text.replace(" ", "")) // 4 + 1 for text in texts]

        examples = list(pack([(whole, 0)], count, 62))
        assert squeezed([example for example, _ in examples]) == squeezed([whole])
        assert all(tokens <= 62 for _, tokens in examples)
        counted[size] = seen[0]
    assert counted[160_000] < 10 * counted[20_000]


@settings(deadline=None, max_examples=30)
@given(
    st.text(alphabet="ab e\u0308字कि  ", min_size=1, max_size=40), st.integers(60, 200), st.integers(7, 30)
)
def test_a_long_line_loses_nothing_by_any_tokenizer(unit, times, room) -> None:
    whole = " ".join((unit * times).split())
    if not whole:
        return
    for count in COUNTERS.values():
        examples = list(pack([("first", 0), (whole, 0), ("last", 0)], count, room))
        assert squeezed([text for text, _ in examples]) == squeezed(["first", whole, "last"])
        assert all(tokens <= room for _, tokens in examples)
        assert [tokens for _, tokens in examples] == count([text for text, _ in examples])
