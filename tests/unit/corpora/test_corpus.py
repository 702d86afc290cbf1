"""Reading, cleaning, splitting and packing of text."""

import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tests.conftest import bundled_lines

from polydistill.config.shared import Corpora, Source
from polydistill.corpora.cleaning import clean_line
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.dedup import HELD_OUT, TRAIN, Items, find_repeats, reasons
from polydistill.corpora.examples import Examples
from polydistill.corpora.lines import read_lines
from polydistill.corpora.sampling import smoothed_probabilities
from polydistill.corpora.sources import read_documents, source_identity
from polydistill.disk import hash_text
from polydistill.errors import CorpusError

LINES = ["eins zwei", "drei", "vier fünf"]


def lines_of(**source) -> list[str]:
    documents = read_documents([Source(**source)], Counter(), field="languages.de.text", block_lines=64)
    return [line for document in documents for line in document.lines]


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.txt", bytes),
        ("a.txt.gz", gzip.compress),
        ("a.txt.xz", lzma.compress),
        ("a.txt.zst", zstandard.ZstdCompressor().compress),
    ],
)
def test_text_files_of_every_compression(tmp_path, name, pack) -> None:
    (tmp_path / name).write_bytes(pack(("\ufeff" + "\r\n".join(LINES) + "\n").encode()))
    assert lines_of(path=str(tmp_path / name)) == LINES
    assert lines_of(path=str(tmp_path / name), first_line=2, num_lines=1) == ["drei"]


def test_folders_and_globs_are_sorted(tmp_path) -> None:
    for name, text in (
        ("b.txt", "zwei"),
        ("sub/a.jsonl", '{"text": "drei"}'),
        ("a.txt", "eins"),
        ("notes.md", "nein"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert lines_of(path=str(tmp_path)) == ["eins", "zwei", "drei"]
    assert lines_of(path=str(tmp_path / "*.txt")) == ["eins", "zwei"]


def test_rows_are_documents(tmp_path) -> None:
    rows = [{"body": "eins\nzwei", "id": 1}, {"body": "drei", "id": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nbroken\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for source in (
        {"path": str(tmp_path / "a.jsonl")},
        {"path": str(tmp_path / "a.parquet")},
        {"dataset": str(tmp_path / "saved")},
    ):
        dropped: Counter[str] = Counter()
        documents = list(read_documents([Source(field="body", **source)], dropped, field="x", block_lines=64))
        assert [document.lines for document in documents] == [["eins", "zwei"], ["drei"]]
        assert dropped["not_json"] == (1 if "a.jsonl" in str(source) else 0)
        with pytest.raises(CorpusError, match=r"text.*has no such field \(it has body, id\)"):
            lines_of(**source)


def test_blank_lines_part_documents(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n\n\nc\n")
    documents = list(
        read_documents(
            [Source(path=str(tmp_path / "a.txt"), documents="blank_lines")],
            Counter(),
            field="x",
            block_lines=64,
        )
    )
    assert [document.lines for document in documents] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.txt.gz", b"not gzip", "cannot be read"),
        ("a.txt.xz", lzma.compress(b"x\n" * 999)[:-8], "cannot be read"),
        ("a.parquet", b"PAR1", "Parquet"),
        ("a.jsonl", b"x\n" * 9, "not JSON"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, wanted) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=wanted) as caught:
        lines_of(path=str(tmp_path / name))
    assert name in str(caught.value)


def test_some_bad_lines_are_dropped_and_counted(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n" * 300 + b"b\xe4d\n" * 5 + b"good\n")
    dropped: Counter[str] = Counter()
    assert len(list(read_lines(tmp_path / "a.txt", dropped, field="x"))) == 301
    assert dropped == {"not_utf8": 5}


def test_a_file_without_line_ends_is_read_in_parts(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes("ä€😀".encode() * 400_000)
    parts = list(read_lines(tmp_path / "a.txt", Counter(), field="x"))
    assert len(parts) > 3
    assert "".join(parts) == "ä€😀" * 400_000


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\tb\u00a0 c\n", "a b c"),
        ("e\u0301", "é"),
        ("a\x00b\x07", "ab"),
        ("\u202eabc\u202c", "abc"),
        ("\ufeffx y", "x y"),
        ("क\u200dष", "क\u200dष"),
        ("a\ud800b", "ab"),
        ("x\ue000y", "xy"),
        ("", None),
        ("\x00", None),
        ("x", None),
    ],
)
def test_cleaning(raw, clean) -> None:
    assert (
        clean_line(
            raw,
            min_characters=2 if clean is None or len(clean) > 1 else 1,
            dropped=Counter(),
            changed=Counter(),
        )
        == clean
    )


def test_held_out_lines_win_over_training_and_repeats_go(tmp_path) -> None:
    lines = [("a", TRAIN), ("b", TRAIN), ("a", HELD_OUT), ("b", TRAIN), ("c", 2), ("b", 2), ("c", 3)]
    hashes = np.array([hash_text(text) for text, _ in lines], dtype=np.uint64)
    splits = np.array([split for _, split in lines], dtype=np.uint8)
    for name, partition, sizes in (("one", 1000, [7]), ("small", 2, [7]), ("parts", 3, [3, 0, 4])):
        starts = [sum(sizes[:index]) for index in range(len(sizes))]

        def load(index: int, sizes=sizes, starts=starts) -> Items:
            rows = slice(starts[index], starts[index] + sizes[index])
            return Items(hashes[rows], splits[rows])

        keep, lost = find_repeats(tmp_path / name, sizes, load, partition_items=partition)
        assert keep.tolist() == [False, True, True, False, True, False, False]
        assert reasons(lost) == {"in_held_out": 1, "duplicate": 2, "in_training": 1}


def build(tmp_path: Path, sources: list[Source], **settings) -> dict:
    folder = tmp_path / "corpus"
    folder.mkdir(exist_ok=True)
    return build_corpus(
        folder,
        sources=sources,
        evaluation={},
        count_tokens=words,
        max_tokens=30,
        fields=CorpusFields("languages.en.text", "languages.en.evaluation"),
        settings=Corpora(**{"block_lines": 16, "held_out_share": 0.1} | settings),
    )


def test_a_corpus_counts_what_it_did_and_datasets_opens_it(tmp_path) -> None:
    lines = bundled_lines("en", 2000)
    (tmp_path / "en.txt").write_text("\n".join([*lines, "", "x", lines[0], "tab\x07here and more"]) + "\n")
    statistics = build(tmp_path, [Source(path=str(tmp_path / "en.txt"))])
    dropped = statistics["dropped"]
    assert dropped["empty"] == 1
    assert dropped["too_short"] == 1
    assert dropped["duplicate"] + dropped["in_held_out"] == len(lines) + 2 - len({*lines, "tabhere and more"})
    assert statistics["changed"]["control_characters"] == 1
    train, held_out = Examples(tmp_path / "corpus/train.arrow"), Examples(tmp_path / "corpus/held_out.arrow")
    kept = [
        line for part in (train, held_out) for text in part.texts(slice(None)) for line in text.split("\n")
    ]
    assert sum(map(len, " ".join(kept).split())) == sum(
        map(len, " ".join({*lines, "tabhere and more"}).split())
    )
    assert statistics["splits"]["train"]["fill"] > 0.9
    assert max(train.num_tokens) <= 30
    assert max(words(train.texts(slice(None)))) <= 30
    assert len(set(train.ids.tolist())) == len(train)
    opened = datasets.Dataset.from_file(str(tmp_path / "corpus/train.arrow"))
    assert opened[3]["text"] == train.texts(slice(3, 4))[0]
    assert not (tmp_path / "corpus/spool").exists()


def test_identity_is_by_content(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("one\n")
    first, same = ([Source(path=str(tmp_path / name))] for name in ("a.txt", "b.txt"))
    assert source_identity(first, field="x") == source_identity(same, field="x")
    (tmp_path / "b.txt").write_text("two\n")
    assert source_identity(first, field="x") != source_identity(same, field="x")


def test_smoothing() -> None:
    assert smoothed_probabilities({"a": 100, "b": 1}, 1.0)["a"] == pytest.approx(100 / 101)
    assert smoothed_probabilities({"a": 100, "b": 1}, 0.0)["a"] == 0.5
    assert smoothed_probabilities({"a": 100, "b": 1}, 0.7)["b"] == pytest.approx(1 / (1 + 100**0.7))
    with pytest.raises(CorpusError):
        smoothed_probabilities({"a": 0}, 0.7)
