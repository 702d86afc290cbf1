"""Laws of the corpora: what is held out stays held out, nothing is lost, nothing is too long."""

import contextlib
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from polydistill.config.shared import Corpora, Source
from polydistill.corpora.cleaning import clean_line
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.examples import Examples
from polydistill.corpora.packing import pack
from polydistill.errors import CorpusError

some_lines = st.lists(
    st.integers(0, 400).map(lambda n: f"line number {n} of the text"), min_size=30, max_size=120
)


def split(files: list[list[str]]) -> tuple[set[str], set[str], bool]:
    """(training lines, held-out lines, whether the share held them out) of a corpus of these files."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for index, lines in enumerate(files):
            (root / f"{index}.txt").write_text("\n".join(lines) + "\n")
        (root / "c").mkdir()
        # Nothing can be held out of so little text: the files exist all the same.
        by_share = True
        with contextlib.suppress(CorpusError):
            statistics = build_corpus(
                root / "c",
                sources=[Source(path=str(root / f"{index}.txt")) for index in range(len(files))],
                evaluation={},
                settings=Corpora(block_lines=4, held_out_share=0.3),
                fields=CorpusFields("x.text", "x.evaluation"),
                max_tokens=7,
                count_tokens=lambda texts: [len(text.split()) for text in texts],
            )
            by_share = statistics["held_out_by"] == "share"
        train, held_out = (
            {
                " ".join(line.split())
                for text in Examples(root / "c" / f"{name}.arrow").texts(slice(None))
                for line in text.split("\n")
            }
            for name in ("train", "held_out")
        )
        return train, held_out, by_share


@settings(max_examples=25, deadline=None)
@given(some_lines, some_lines, some_lines)
def test_added_text_moves_nothing_out_of_held_out(first, behind, other) -> None:
    """But for a text of which no document is within the share: its first one is held out."""
    train, held_out, by_share = split([first])
    for files in ([first + behind], [first, other], [other, first]):
        wider_train, wider_held_out, _ = split(files)
        assert held_out <= wider_held_out or not by_share
        assert not wider_train & wider_held_out
        assert (train | held_out) <= (wider_train | wider_held_out)


@given(st.text(max_size=60))
def test_cleaning_twice_is_cleaning_once(text) -> None:
    once = clean_line(text, min_characters=1, dropped=Counter(), changed=Counter())
    if once is not None:
        assert clean_line(once, min_characters=1, dropped=Counter(), changed=Counter()) == once


def characters(texts: list[str]) -> list[int]:
    """A tokenizer with a token for every character but the space."""
    return [sum(not c.isspace() for c in text) for text in texts]


line = (
    st.text(alphabet="ab e\u0301字", min_size=1, max_size=60).map(lambda t: " ".join(t.split())).filter(bool)
)


@given(st.lists(st.tuples(line, st.integers(0, 1)), max_size=12), st.integers(4, 20))
def test_packing_loses_nothing_and_is_never_too_long(lines, room) -> None:
    examples = list(pack(lines, characters, room))
    for text, tokens in examples:
        assert characters([text])[0] == tokens <= room
    assert "".join("".join(text.split()) for text, _ in examples) == "".join(
        "".join(text.split()) for text, _ in lines
    )


@given(st.lists(line, min_size=1, max_size=12))
def test_sequences_of_one_run_are_nearly_full(lines) -> None:
    examples = list(pack([(text, 0) for text in lines], characters, 16))
    # All but the last are full, up to what a stub not worth cutting leaves, or a cut at a space: that is in
    # the second half of the characters, of which every other one may be a space.
    assert all(tokens >= 4 for _, tokens in examples[:-1])
