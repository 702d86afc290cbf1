"""Which sentences are trained on, held out and dropped."""

from pathlib import Path

import numpy as np
import pytest

from polydistill.config.embed import EmbedLanguage, Sentences
from polydistill.corpora.sentences import read_split, write_sentences
from polydistill.disk import hash_text
from polydistill.errors import CorpusError


def written(folder, language: dict, *, held_out: int = 1000, avoid=(), seed: int = 0, **settings):
    folder.mkdir()
    counts = write_sentences(
        folder,
        EmbedLanguage.model_validate(language),
        Sentences(**settings),
        field="languages.xx",
        held_out=held_out,
        avoid={hash_text(text) for text in avoid},
        seed=seed,
    )
    return counts, read_split(folder, "train"), read_split(folder, "held_out")


@pytest.fixture
def text(tmp_path):
    lines = [f"sentence  number {number}" for number in range(500)]
    (tmp_path / "a.txt").write_text("\n".join([*lines, "", "x", lines[7]]) + "\n", "utf-8")
    return str(tmp_path / "a.txt")


def test_lines_are_cleaned_split_by_content_and_kept_once(tmp_path, text) -> None:
    counts, train, held = written(
        tmp_path / "one", {"text": text}, held_out_share=0.2, avoid=["sentence number 3"]
    )
    everything = {f"sentence number {number}" for number in range(500)} - {"sentence number 3"}
    assert set(train.texts) | set(held.texts) == everything
    assert not set(train.texts) & set(held.texts)
    assert 60 < len(held.texts) < 140
    assert counts["dropped"] == {"empty": 1, "repeated": 1, "test_sentence": 1, "too_short": 1}
    assert counts["train"]["texts"] == len(train.texts)
    np.testing.assert_array_equal(train.rows, np.arange(len(train.texts)))
    assert train.sources == train.texts
    # More text moves no sentence to the other side.
    more = tmp_path / "b.txt"
    more.write_text("another one\n" * 3 + Path(text).read_text("utf-8"), "utf-8")
    _, train2, held2 = written(tmp_path / "two", {"text": str(more)}, held_out_share=0.2)
    assert set(train.texts) <= set(train2.texts)
    assert set(held.texts) <= set(held2.texts)


def test_a_maximum_is_drawn_by_the_seed(tmp_path, text) -> None:
    chosen = [
        written(tmp_path / name, {"text": text}, seed=seed, max_sentences=50, held_out=5)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    (_, one, held), (_, again, _), (_, other, held_other) = chosen
    assert len(one.texts) == 50
    assert len(held.texts) == 5
    assert one.texts == again.texts
    assert one.texts != other.texts
    assert held.texts == held_other.texts
    # In the text's order.
    numbers = [int(line.rpartition(" ")[2]) for line in one.texts]
    assert numbers == sorted(numbers)


def test_translations_learn_the_vector_of_their_original(tmp_path) -> None:
    rows = [f"original {number}\tÜbersetzung {number}\ttraduction {number}" for number in range(60)]
    (tmp_path / "pairs.tsv").write_text("\n".join([*rows, "\tnothing", "original 3\tnoch eine"]), "utf-8")
    counts, train, held = written(
        tmp_path / "out",
        {"translations": str(tmp_path / "pairs.tsv")},
        held_out_share=0.2,
        avoid=["traduction 5", "original 6"],
    )
    assert held.texts
    for split in (train, held):
        for text, row in zip(split.texts, split.rows.tolist(), strict=True):
            number = text.rpartition(" ")[2]
            expected = "original 3" if text == "noch eine" else f"original {number}"
            assert split.sources[row] == expected
        assert len(set(split.sources)) == len(split.sources)
    # A test sentence takes its translations with it, and no sentence is on both sides.
    texts = set(train.texts) | set(held.texts)
    assert not texts & {"traduction 5", "original 6", "Übersetzung 6", "traduction 6"}
    assert {"Übersetzung 5", "original 5"} <= texts
    assert not set(train.sources) & set(held.sources)
    assert counts["train"]["sources"] == len(train.sources) < len(train.texts)


@pytest.mark.parametrize(
    ("language", "settings", "said"),
    [
        ({"translations": "pairs.tsv"}, {}, "line 2.*has no tab"),
        ({"translations": "gone.tsv"}, {}, r"translations\[0\].*no such file"),
        ({"text": "short.txt"}, {}, "leaves no sentence to train on"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path, monkeypatch, language, settings, said) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("a b\tc d\nalone\n", "utf-8")
    (tmp_path / "short.txt").write_text("x\ny\n", "utf-8")
    with pytest.raises(CorpusError, match=said):
        written(tmp_path / "out", language, **settings)
