"""Damaged or malicious data of tasks and text: refused with file and line, or the line is left out and
counted. Never a traceback, and memory is bounded.
"""

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polydistill.config.finetune import Columns, LabelledSource
from polydistill.config.shared import Source
from polydistill.corpora import lines
from polydistill.corpora.sources import read_documents
from polydistill.errors import CorpusError
from polydistill.tasks import labelled, questions, tagged
from polydistill.tasks.labelled import read_labelled
from polydistill.tasks.tagged import read_tagged

FIELD = "tasks.t.data.en.train"


def read(path: Path, kind: str, **columns):
    return read_labelled(LabelledSource(path=str(path)), kind, Columns(**columns), field=FIELD)


def squad(**changed) -> str:
    answer = {"text": "house", "answer_start": 2}
    entry = {"id": "1", "question": "what?", "answers": [answer], "context": "a house"} | changed
    paragraph = {"context": entry.pop("context"), "qas": [entry]}
    return json.dumps({"data": [{"paragraphs": [paragraph]}]})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "is not JSON"),
        ('{"data": ' * 50_000 + "1" + "}" * 50_000, "is not JSON"),
        (squad().replace("2", "9" * 5000), "is not JSON"),
        (squad(question="what \ud800?"), r"qas\[0\]'?: holds half a character"),
        (squad(context="a \udfff house"), r"qas\[0\]'?: holds half a character"),
        (squad(answers=[{"text": "\ud83d", "answer_start": 0}]), r"qas\[0\]'?: holds half a character"),
    ],
)
def test_questions_that_cannot_be_read(tmp_path, content, reason) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, "utf-8")
    with pytest.raises(CorpusError, match=reason):
        read(path, "qa")
    path.write_text(squad(question="what 😀?"), "utf-8")
    assert read(path, "qa")[0].question == "what 😀?"


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("classification", {"text": "a", "label": "\ud800"}),
        ("classification", {"text": "a \udc00 b", "label": "x"}),
        ("pairs", {"text": "a", "pair": "\ud800", "label": "x"}),
        ("choice", {"premise": "\ud800", "choice1": "a", "choice2": "b", "label": 0}),
        ("choice", {"premise": "a", "choice1": "a", "choice2": "b\udfff", "label": 0}),
    ],
)
def test_half_a_character_in_a_row_is_named(tmp_path, kind, row) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(CorpusError, match=r"line 1'?: column '.*' holds half a character") as caught:
        read(path, kind)
    # The message can be printed.
    assert str(caught.value).encode("utf-8")


@pytest.mark.parametrize("label", ["9" * 5000, "--1", "-", "²", "1e3", "1" * 25])
def test_a_choice_that_is_no_number_is_named(tmp_path, label) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"premise": "p", "choice1": "a", "choice2": "b", "label": label}) + "\n", "utf-8"
    )
    with pytest.raises(CorpusError, match="is not in 0 to 1"):
        read(path, "choice")


@pytest.mark.parametrize("number", ["9" * 5000, "1-" + "9" * 5000, "9" * 5000 + ".1", "9" * 5000 + "-1"])
def test_a_treebanks_id_of_thousands_of_digits_is_named(tmp_path, number) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(
        f"1\ta\ta\tDET\t_\t_\t2\tdet\t_\t_\n{number}\tb\tb\tNOUN\t_\t_\t0\troot\t_\t_\n\n", "utf-8"
    )
    with pytest.raises(CorpusError, match=r"a.conllu, line 1'?: is not CoNLL-U"):
        read_tagged(path, field=FIELD)
    path.write_text(
        path.read_text("utf-8").replace(number, "2").replace("\t2\tdet", "\t" + "9" * 5000 + "\tdet"), "utf-8"
    )
    with pytest.raises(CorpusError, match="is not CoNLL-U"):
        read_tagged(path, field=FIELD)


def parquet(path: Path, values: list[bytes | None]) -> None:
    """A column that claims to be text, whatever its bytes are."""
    texts = pa.array(values, pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers(), texts.null_count)
    pq.write_table(pa.table({"text": column}), path)


def test_strings_of_parquet_that_are_not_utf8_are_left_out_and_counted(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    parquet(path, [b"one", b"\xff\xfe", b"two", None, b"\xed\xa0\x80", b"three"])
    dropped: Counter[str] = Counter()
    documents = read_documents([Source(path=str(path))], dropped, field="languages.x.text", block_lines=4)
    assert [line for document in documents for line in document.lines] == ["one", "two", "three"]
    assert dropped == {"not_utf8": 2, "not_text": 1}
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorpusError, match="cannot be read as Parquet"):
        list(read_documents([Source(path=str(path))], dropped, field="languages.x.text", block_lines=4))


OPENED = {"": Path.open, ".gz": gzip.open, ".xz": lzma.open}


class Counting:
    """A file that counts the bytes read from it."""

    def __init__(self, handle) -> None:
        self.handle, self.read = handle, 0

    def readline(self, size: int) -> bytes:
        part = self.handle.readline(size)
        self.read += len(part)
        return part

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.handle.close()


@pytest.fixture
def counted(monkeypatch) -> list[Counting]:
    """Every file that lines are read from, with low limits: 64 KiB a line, 512 KiB a file."""
    made: list[Counting] = []
    original = lines.open_text

    def opened(path: Path) -> Counting:
        made.append(Counting(original(path)))
        return made[-1]

    monkeypatch.setattr(lines, "open_text", opened)
    monkeypatch.setattr(lines, "MAX_JSON_BYTES", 1 << 16)
    monkeypatch.setattr(lines, "BOMB_BYTES", 1 << 17)
    for module in (tagged, questions, labelled):
        monkeypatch.setattr(module, "MAX_TASK_BYTES", 1 << 19)
    return made


def bomb(path: Path, unit: bytes) -> Path:
    """A file of 16 MiB, a few KiB when compressed."""
    with lzma.open(path, "wb", preset=1) if path.suffix == ".xz" else gzip.open(path, "wb", 1) as handle:
        for _ in range(16):
            handle.write(unit * ((1 << 20) // len(unit)))
    assert path.stat().st_size < 1 << 17
    return path


@pytest.mark.parametrize("packed", [".xz", ".gz"])
@pytest.mark.parametrize("unit", [b"a", b"a\tO\n", b"a\tO\n\n", b"\n", b"# x\n"])
def test_a_bomb_of_tagged_words_is_given_up_within_a_bound(tmp_path, counted, packed, unit) -> None:
    path = bomb(tmp_path / f"a.bio{packed}", unit)
    with pytest.raises(CorpusError, match=r"MiB|more than 20,000 lines"):
        read_tagged(path, field=FIELD)
    assert sum(file.read for file in counted) <= (1 << 19) + (1 << 16)


def test_a_bomb_is_told_by_how_tightly_it_is_packed(tmp_path, counted) -> None:
    path = bomb(tmp_path / "a.bio.xz", b"a\tO\n\n")
    most = lines.BOMB_RATIO * path.stat().st_size
    assert lines.BOMB_BYTES < most < 1 << 19
    with pytest.raises(CorpusError, match="more than 100 times its size on the disk"):
        read_tagged(path, field=FIELD)
    assert sum(file.read for file in counted) <= most + (1 << 14)


@pytest.mark.parametrize(
    ("kind", "name", "unit"),
    [
        ("qa", "a.json.xz", b"[" * 1024 + b"\n"),
        ("qa", "a.json.gz", b" "),
        ("classification", "a.jsonl.xz", b'{"text":"a","label":"b"}\n'),
        ("classification", "a.tsv.gz", b"text\tlabel\n"),
        ("classification", "a.csv.xz", b"a"),
        ("pos", "a.conllu.xz", b"1\ta\ta\tDET\t_\t_\t0\troot\t_\t_\n\n"),
    ],
)
def test_a_bomb_of_other_tasks_is_given_up_within_a_bound(tmp_path, counted, kind, name, unit) -> None:
    path = bomb(tmp_path / name, unit)
    with pytest.raises(CorpusError, match="MiB"):
        read(path, kind)
    assert sum(file.read for file in counted) <= (1 << 19) + (1 << 16)
    # Of an uncompressed file, too.
    plain = tmp_path / path.with_suffix("").name
    plain.write_bytes(unit * ((1 << 21) // len(unit)))
    with pytest.raises(CorpusError, match="MiB"):
        read(plain, kind)
    assert counted[-1].read <= 1 << 20
    # If a recipe takes the first part of a file, the rest is not read.
    if kind == "pos":
        source = LabelledSource(path=str(path), num_examples=3)
        assert len(read_labelled(source, kind, Columns(), field=FIELD)) == 3


def test_data_that_is_packed_as_text_is_read_to_its_end(tmp_path) -> None:
    words = [f"{seed:030x}\tB-{seed % 7}" for seed in range(200_000)]
    path = tmp_path / "a.bio.xz"
    path.write_bytes(lzma.compress("\n\n".join(words).encode(), preset=0))
    assert len(read_tagged(path, field=FIELD)) == 200_000


def test_a_bomb_of_text_is_read_in_parts(tmp_path, monkeypatch) -> None:
    held: list[int] = []
    original = lines.decode_line
    monkeypatch.setattr(lines, "decode_line", lambda raw: held.append(len(raw)) or original(raw))
    path = bomb(tmp_path / "a.txt.xz", b"a")
    documents = read_documents(
        [Source(path=str(path), max_characters=8 << 20)], Counter(), field="x", block_lines=4
    )
    assert all(sum(map(len, document.lines)) <= 5 << 20 for document in documents)
    assert max(held) <= 1 << 20
    assert sum(held) <= 16 << 20


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_a_file_whose_ending_lies_is_named(tmp_path, pack, ending) -> None:
    path = tmp_path / f"a.bio{ending}"
    path.write_bytes(pack(b"a\tO\n\n" * 50)[:-3])
    with pytest.raises(CorpusError, match=r"cannot be read"):
        read_tagged(path, field=FIELD)
