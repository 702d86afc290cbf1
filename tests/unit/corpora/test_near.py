"""Near-repeats by MinHash, against the exact Jaccard similarity."""

import json
import random

import numpy as np
import pytest
from tests.conftest import bundled_lines
from tests.part_tasks import words

from polydistill.config.shared import Corpora, Source
from polydistill.corpora import parts as part_reader
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.examples import Examples
from polydistill.corpora.near import _shingles, band_hashes, bands_for
from polydistill.corpora.pool import Alone, Processes


def jaccard(first: list[str], second: list[str]) -> float:
    one, two = (_shingles(" ".join(lines)) for lines in (first, second))
    return len(one & two) / len(one | two)


def changed(words_of: list[str], number: int, draw: random.Random) -> list[str]:
    """Words with some replaced."""
    copy = list(words_of)
    for place in draw.sample(range(len(copy)), number):
        copy[place] = f"other{draw.randrange(10**6)}"
    return copy


@pytest.mark.parametrize("similarity", [0.5, 0.8])
def test_documents_share_a_band_as_often_as_their_similarity_says(similarity) -> None:
    draw = random.Random(0)
    bands, rows = bands_for(similarity)
    assert abs((1 / bands) ** (1 / rows) - similarity) < 0.05
    document = " ".join(bundled_lines("en", 40)).split()[:400]
    shared, expected = [], []
    for number in (0, 2, 5, 8, 12, 18, 26, 40, 80, 160):
        for _ in range(20):
            copy = changed(document, number, draw)
            s = jaccard([" ".join(document)], [" ".join(copy)])
            expected.append(1 - (1 - s**rows) ** bands)
            found = [band_hashes([" ".join(each)], bands, rows) for each in (document, copy)]
            shared.append(bool((found[0] == found[1]).any()))
    # The standard deviation of the mean is at most 0.5 / sqrt(200).
    assert abs(np.mean(shared) - np.mean(expected)) < 0.08
    assert all(shared[:20])
    assert not any(shared[-20:])
    assert {0, 1} <= set(np.round(expected, 1))


def test_a_band_says_which_it_is_and_chinese_has_sequences_too() -> None:
    assert len(set(band_hashes(["one"], 16, 7).tolist())) == 16
    text = ["我们在山上看到了一只很大的鸟它飞得很高我们都很高兴", "然后我们回家了吃了一顿饭大家都睡着了"]
    assert len(_shingles(" ".join(text))) > 20
    near = [text[0], text[1].replace("一顿", "两顿")]
    assert 0.4 < jaccard(text, near) < 1


def test_near_repeats_go_and_nothing_else_does(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(part_reader, "PART_BYTES", 3000)
    draw = random.Random(1)
    text = " ".join(bundled_lines("en", 3000)).split()
    originals = [" ".join(text[place : place + 60]) for place in range(0, 6000, 60)]
    copies = [" ".join(changed(line.split(), 1, draw)) for line in originals[:60]]
    lines = originals + copies
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))

    def build(name: str, near: float | None, pool) -> tuple[list[str], list[str], dict]:
        (tmp_path / name).mkdir()
        statistics = build_corpus(
            tmp_path / name,
            sources=[Source(path=str(tmp_path / "a.jsonl"))],
            evaluation={},
            settings=Corpora(held_out_share=0.2, near_repeats=near),
            count_tokens=words,
            max_tokens=1000,
            fields=CorpusFields("text", "evaluation"),
            pool=pool,
        )
        splits = [Examples(tmp_path / name / f"{s}.arrow").texts(slice(None)) for s in ("train", "held_out")]
        return *splits, statistics["dropped"]

    train, held_out, dropped = build("all", None, Alone())
    assert sorted(train + held_out) == sorted(lines)
    assert dropped["near_repeat"] == 0
    pool = Processes(2)
    near_train, near_held_out, near_dropped = build("near", 0.6, pool)
    pool.close()
    kept = set(near_train + near_held_out)
    pairs = list(zip(originals[:60], copies, strict=True))
    # Similar pairs share a band nearly always (1 - (1 - 0.7^5)^22 = 0.98).
    assert all(jaccard([one], [two]) > 0.7 for one, two in pairs)
    assert sum(one in kept and two in kept for one, two in pairs) <= 5
    assert all(one in kept or two in kept for one, two in pairs)
    assert set(originals[60:]) <= kept
    assert near_dropped["near_repeat"] == len(lines) - len(kept) >= 55
    # Of a pair with one side held out, that one stays.
    held = set(held_out)
    mixed = [(one, two) for one, two in pairs if (one in held) != (two in held)]
    assert len(mixed) > 5
    assert set(near_held_out) >= {line for pair in mixed for line in pair if line in held}


def test_training_gives_way_to_held_out_text_and_evaluation_texts_to_training(tmp_path) -> None:
    """So no model is measured on what it nearly saw, and added text removes nothing that is held out."""
    draw = random.Random(3)
    text = " ".join(bundled_lines("en", 3000)).split()
    originals = [" ".join(text[place : place + 60]) for place in range(0, 6000, 60)]
    # One word at the end: 4 of 60 sequences differ, so a pair shares a band nearly always.
    near = [" ".join([*line.split()[:-1], f"other{draw.randrange(10**6)}"]) for line in originals]
    further = [" ".join([*line.split()[:-1], f"else{draw.randrange(10**6)}"]) for line in originals]
    new = "a text of its own that is like no other document of all those that stand in the files of this test"
    # Copies come first in the file: their place does not save them.
    for name, lines in {"text": near + originals, "news": [*further, new]}.items():
        rows = [json.dumps({"text": line}) for line in lines]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    (tmp_path / "corpus").mkdir()
    build_corpus(
        tmp_path / "corpus",
        sources=[Source(path=str(tmp_path / "text.jsonl"))],
        evaluation={"news": [Source(path=str(tmp_path / "news.jsonl"))]},
        settings=Corpora(held_out_share=0.2, near_repeats=0.6),
        count_tokens=words,
        max_tokens=1000,
        fields=CorpusFields("text", "evaluation"),
    )
    train, held_out, news = (
        set(Examples(tmp_path / "corpus" / f"{name}.arrow").texts(slice(None)))
        for name in ("train", "held_out", "evaluation/news")
    )
    pairs = list(zip(originals, near, strict=True))
    assert all(jaccard([one], [two]) > 0.85 for one, two in pairs)
    mixed = [pair for pair in pairs if len(held_out & set(pair)) == 1]
    assert len(mixed) > 20
    assert not [pair for pair in mixed if train & set(pair)]
    # Every pair has left one document, in one of the two splits.
    assert all(len((train | held_out) & set(pair)) == 1 for pair in pairs)
    assert news == {new}


def test_a_line_of_a_near_repeat_is_kept_elsewhere(tmp_path) -> None:
    """A document that goes does not take the last copy of a line with it."""
    draw = random.Random(2)
    base = " ".join(bundled_lines("en", 60)).split()
    first = base[:200]
    second = changed(first, 1, draw)
    shared = "a line that the dropped document and a third one have"
    documents = [" ".join(first), " ".join(second) + "\n" + shared, " ".join(base[300:500]) + "\n" + shared]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
    (tmp_path / "corpus").mkdir()
    build_corpus(
        tmp_path / "corpus",
        sources=[Source(path=str(tmp_path / "a.jsonl"))],
        evaluation={},
        settings=Corpora(held_out_share=1e-9, near_repeats=0.6),
        count_tokens=words,
        max_tokens=1000,
        fields=CorpusFields("text", "evaluation"),
    )
    texts = [
        text
        for split in ("train", "held_out")
        for text in Examples(tmp_path / "corpus" / f"{split}.arrow").texts(slice(None))
    ]
    assert sum(shared in text for text in texts) == 1
    assert (" ".join(first) in " ".join(texts)) != (" ".join(second) in " ".join(texts))
