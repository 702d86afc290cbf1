"""Input that used to slip through, and the message for each fault."""

import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tests.conftest import write_examples
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from polydistill.config.shared import Corpora, Source
from polydistill.corpora import documents as document_reader
from polydistill.corpora import lines as line_reader
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.counting import TokenCounter
from polydistill.corpora.examples import Examples
from polydistill.corpora.packing import pack, split_line
from polydistill.corpora.sources import Document, read_documents, source_identity
from polydistill.disk import hash_text
from polydistill.errors import CorpusError

FIELD = "languages.sw.text"


def documents_of(dropped: Counter[str] | None = None, block_lines: int = 64, **source) -> list[Document]:
    counts = Counter() if dropped is None else dropped
    return list(read_documents([Source(**source)], counts, field=FIELD, block_lines=block_lines))


def expect_refusal(*wanted: str, **source) -> None:
    with pytest.raises(CorpusError) as caught:
        documents_of(**source)
    assert caught.value.field.startswith(f"{FIELD}[0]")
    assert caught.value.value
    assert caught.value.remedy
    for part in wanted:
        assert part in str(caught.value)


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def write_rows(folder: Path, values: list) -> dict[str, dict[str, str]]:
    """The same rows as JSONL, Parquet and a saved data set."""
    rows = [{"text": value} for value in values]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return {
        "jsonl": {"path": str(folder / "a.jsonl")},
        "parquet": {"path": str(folder / "a.parquet")},
        "data set": {"dataset": str(folder / "saved")},
    }


def test_zstandard_that_was_cut_short_is_refused(tmp_path) -> None:
    content = zstandard.ZstdCompressor().compress(
        np.random.default_rng(0).bytes(100_000).hex(" ", 20).replace(" ", "\n").encode()
    )
    (tmp_path / "a.txt.zst").write_bytes(content[: len(content) // 2])
    expect_refusal("a.txt.zst", "cannot be read", "whole", path=str(tmp_path / "a.txt.zst"))


def test_zstandard_of_several_frames_is_read_to_its_end(tmp_path) -> None:
    frame = zstandard.ZstdCompressor().compress
    (tmp_path / "a.txt.zst").write_bytes(frame(b"one\n") + frame(b"two\n"))
    assert [document.lines for document in documents_of(path=str(tmp_path / "a.txt.zst"))] == [["one", "two"]]


def test_utf16_is_refused_though_much_of_it_is_valid_utf8(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("some words\n" * 300, "utf-16")
    expect_refusal("a.txt", "not UTF-8", "iconv", path=str(tmp_path / "a.txt"))


def test_a_few_bad_lines_at_the_beginning_do_not_condemn_a_file(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes(b"b\xe4d\n" * 5 + b"good\n" * 300)
    dropped: Counter[str] = Counter()
    assert sum(len(document.lines) for document in documents_of(dropped, path=str(tmp_path / "a.txt"))) == 300
    assert dropped == {"not_utf8": 5}
    (tmp_path / "a.jsonl").write_text("broken\n" * 5 + '{"text": "good"}\n' * 300)
    assert len(documents_of(dropped, path=str(tmp_path / "a.jsonl"))) == 300
    assert dropped["not_json"] == 5


def test_a_long_json_line_is_one_document(tmp_path, monkeypatch) -> None:
    text = "word " * 500_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + '\n{"text": "next"}\n')
    dropped: Counter[str] = Counter()
    assert [document.lines for document in documents_of(dropped, path=str(tmp_path / "a.jsonl"))] == [
        [text],
        ["next"],
    ]
    assert not dropped
    monkeypatch.setattr(line_reader, "MAX_JSON_BYTES", 1 << 20)
    assert [document.lines for document in documents_of(dropped, path=str(tmp_path / "a.jsonl"))] == [
        ["next"]
    ]
    assert dropped == {"too_long": 1}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "data set"])
def test_rows_without_text_are_counted(tmp_path, kind) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "numbers").mkdir()
    dropped: Counter[str] = Counter()
    documents = documents_of(dropped, **write_rows(tmp_path / "text", ["one", None, "two"])[kind])
    assert [document.lines for document in documents] == [["one"], ["two"]]
    assert dropped == {"not_text": 1}
    assert documents_of(dropped, **write_rows(tmp_path / "numbers", [1, 2])[kind]) == []
    assert dropped == {"not_text": 3}


def test_splits_of_saved_data_sets(tmp_path) -> None:
    rows = datasets.Dataset.from_list([{"text": "one", "other": 1}])
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(tmp_path / "saved")
    assert len(documents_of(dataset=str(tmp_path / "saved"), split="dev")) == 1
    expect_refusal(
        "split 'test'", "no such split", "train, dev", dataset=str(tmp_path / "saved"), split="test"
    )


def test_data_sets_that_datasets_streams(tmp_path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "a.jsonl").write_text('{"text": "one", "id": 1}\n{"text": "two", "id": 2}\n')
    folder = str(tmp_path / "local")
    assert [document.lines for document in documents_of(dataset=folder)] == [["one"], ["two"]]
    expect_refusal("field 'body'", "it has text, id", dataset=folder, field="body")
    expect_refusal("cannot be loaded", dataset=folder, split="test")
    identity = source_identity([Source(dataset=folder)], field=FIELD)
    (tmp_path / "local" / "a.jsonl").write_text('{"text": "three", "id": 1}\n')
    assert source_identity([Source(dataset=folder)], field=FIELD) != identity


def test_files_that_are_not_there(tmp_path) -> None:
    (tmp_path / "notes.md").write_text("no text")
    expect_refusal("nowhere.txt", "no such file or folder", path="nowhere.txt")
    expect_refusal("*.txt", "no file matches", path=str(tmp_path / "*.txt"))
    expect_refusal(str(tmp_path), "without text", ".jsonl", path=str(tmp_path))


def test_max_characters_ends_the_reading(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("12345\n" * 100)
    assert len(documents_of(path=str(tmp_path / "a.txt"), documents="lines", max_characters=20)) == 4


def test_blank_lines_neither_start_nor_name_a_block(tmp_path) -> None:
    # The hash of nothing divides by 11.
    assert hash_text("") % 11 == 0
    ordinary = [line for line in (f"line {n}" for n in range(200)) if hash_text(line) % 11][:8]
    (tmp_path / "a.txt").write_text("\n" + "\n\n".join(ordinary) + "\n")
    (document,) = documents_of(path=str(tmp_path / "a.txt"), block_lines=11)
    assert document.key == hash_text(ordinary[0])


def test_parts_of_a_long_block_keep_its_key(tmp_path, monkeypatch) -> None:
    ordinary = [line for line in (f"line {n}" for n in range(4000)) if hash_text(line) % 8]
    (tmp_path / "a.txt").write_text("\n".join(ordinary))
    documents = documents_of(path=str(tmp_path / "a.txt"), block_lines=8)
    assert len(documents) > 10
    assert {document.key for document in documents} == {hash_text(ordinary[0])}
    assert [document.joined for document in documents] == [False] + [True] * (len(documents) - 1)
    monkeypatch.setattr(document_reader, "MAX_CHARACTERS", 100)
    assert (
        max(sum(map(len, d.lines)) for d in documents_of(path=str(tmp_path / "a.txt"), block_lines=8)) < 120
    )
    paragraphs = documents_of(path=str(tmp_path / "a.txt"), documents="blank_lines")
    assert max(sum(map(len, d.lines)) for d in paragraphs) < 120
    assert [line for document in paragraphs for line in document.lines] == ordinary


def byte_level() -> Tokenizer:
    """A tokenizer with a token for the line end: counts of lines do not add up to the text's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([f"the cat {n} sat on a mat" for n in range(500)], trainer)
    return tokenizer


def test_byte_level_tokenizers_get_no_example_that_is_too_long() -> None:
    count = TokenCounter([byte_level()])
    lines = [f"the cat {n} sat on a mat" for n in range(500)]
    examples = list(pack([(line, 0) for line in lines], count, 64))
    assert [tokens for _, tokens in examples] == count([text for text, _ in examples])
    assert max(tokens for _, tokens in examples) <= 64
    assert sum(tokens for _, tokens in examples[:-1]) / (64 * (len(examples) - 1)) > 0.9
    assert "\n".join(text for text, _ in examples).split() == "\n".join(lines).split()


def test_marks_stay_with_their_letters() -> None:
    characters = lambda texts: [len(text) for text in texts]  # noqa: E731
    for text in ("कि" * 20, "e\u0308" * 20, "क\u200dष" * 20):
        rest, count = text, len(text)
        while rest:
            head, _, rest, count = split_line(rest, count, characters, 7)
            assert head[0] == text[0]
            assert len(head) >= 4
    # A text of nothing but marks must end all the same.
    assert split_line("\u0308" * 50, 50, characters, 20)[1] > 10


def build(
    folder: Path, sources: list[Source], evaluation: dict[str, list[Source]] | None = None, **settings
) -> dict:
    (folder / "corpus").mkdir()
    return build_corpus(
        folder / "corpus",
        sources=sources,
        evaluation=evaluation or {},
        count_tokens=words,
        max_tokens=8,
        settings=Corpora(**{"block_lines": 4, "held_out_share": 0.2} | settings),
        fields=CorpusFields("languages.sw.text", "languages.sw.evaluation"),
    )


def test_parts_of_cut_lines_stand_in_one_split_once(tmp_path) -> None:
    # Long lines that differ only at their ends: their first parts are equal.
    repeated = "one two three four five six seven eight " * 3
    (tmp_path / "a.txt").write_text("".join(f"{repeated}end {n}\n" for n in range(200)))
    statistics = build(tmp_path, [Source(path=str(tmp_path / "a.txt"), documents="lines")])
    train, held_out = (
        set(Examples(tmp_path / f"corpus/{name}.arrow").ids.tolist()) for name in ("train", "held_out")
    )
    assert not train & held_out
    splits = statistics["splits"]
    assert (len(train), len(held_out)) == (splits["train"]["examples"], splits["held_out"]["examples"])
    assert splits["train"]["repeated"] > 100
    assert splits["held_out"]["examples"] == Examples(tmp_path / "corpus/held_out.arrow").num_tokens.shape[0]


def test_evaluation_text_gives_way_to_training_text(tmp_path) -> None:
    text = [f"this is line {n} of it" for n in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(text))
    (tmp_path / "b.txt").write_text("\n".join([*text, "a line of its own"]))
    alone = build(tmp_path, [Source(path=str(tmp_path / "a.txt"))])
    (tmp_path / "with").mkdir()
    both = build(
        tmp_path / "with",
        [Source(path=str(tmp_path / "a.txt"))],
        {"news": [Source(path=str(tmp_path / "b.txt"))]},
    )
    assert both["splits"]["train"] == alone["splits"]["train"]
    assert Examples(tmp_path / "with/corpus/evaluation/news.arrow").texts(slice(None)) == [
        "a line of its own"
    ]
    assert both["dropped"]["in_training"] == 200
    (tmp_path / "none").mkdir()
    with pytest.raises(CorpusError, match=r"languages\.sw\.evaluation\.news: no text is left"):
        build(
            tmp_path / "none",
            [Source(path=str(tmp_path / "a.txt"))],
            {"news": [Source(path=str(tmp_path / "a.txt"))]},
        )


def test_sources_of_one_name_are_counted_apart(tmp_path) -> None:
    for folder, number in (("one", 100), ("two", 50)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("".join(f"{folder} has line {n}\n" for n in range(number)))
    statistics = build(tmp_path, [Source(path=str(tmp_path / name / "a.txt")) for name in ("one", "two")])
    assert sorted(counts["lines"] for counts in statistics["sources"].values()) == [50, 100]


def test_examples_that_are_damaged_or_missing(tmp_path) -> None:
    write_examples(tmp_path / "a.arrow", [(f"text {n}", 2) for n in range(5000)])
    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(content[: len(content) // 2])
    for path in (tmp_path / "a.arrow", tmp_path / "b.arrow"):
        with pytest.raises(CorpusError, match=path.name):
            Examples(path)


def test_a_sample_of_examples_hardly_changes_with_more_text(tmp_path) -> None:
    write_examples(tmp_path / "a.arrow", [(f"text {n}", 2) for n in range(3000)])
    write_examples(tmp_path / "b.arrow", [("new", 1), *((f"text {n}", 2) for n in range(3000))])
    old, new = Examples(tmp_path / "a.arrow"), Examples(tmp_path / "b.arrow")
    assert len(set(old.texts(old.first(100))) - set(new.texts(new.first(100)))) <= 1
    assert old.ids[old.first(100)].tolist() == sorted(old.ids.tolist())[:100]
