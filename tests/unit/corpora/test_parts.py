"""Text in parts: any process may clean and pack one, and nothing depends on which."""

import gzip
import json
import lzma
import os
import shutil
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import bundled_lines
from tests.part_tasks import ends, fails, modules, words

from polydistill.config.shared import Corpora, Source
from polydistill.corpora import parts as part_reader
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.examples import Examples
from polydistill.corpora.lines import Tally
from polydistill.corpora.part_files import PartFiles
from polydistill.corpora.parts import Part, Reading, Text
from polydistill.corpora.pool import Alone, Pool, Processes, Task
from polydistill.corpora.sources import read_documents, refuse_changed, source_states
from polydistill.errors import CorpusError

SMALL = 3000
FIELDS = CorpusFields("languages.x.text", "languages.x.evaluation")


@pytest.fixture
def small_parts(monkeypatch) -> None:
    monkeypatch.setattr(part_reader, "PART_BYTES", SMALL)


def documents_in(parts: list[Part], block_lines: int) -> tuple[list[tuple], Counter, Tally]:
    dropped, tally = Counter(), Tally()
    found = [
        document[:3]
        for part in parts
        for piece in part.pieces
        for document in piece.documents(block_lines, dropped, tally)
    ]
    return found, dropped, tally


def write_kinds(folder: Path) -> dict[str, Source]:
    """A text of each kind, with what is odd in text: damaged lines, a mark, no line end at the end."""
    lines = [*bundled_lines("en", 200), "", *bundled_lines("ru", 200), "", *bundled_lines("fr", 100)]
    raw = b"\xef\xbb\xbf" + "\r\n".join(lines).encode()
    raw = raw.replace(b"\r\n", b"\n", 50) + b"\nbad \xff\xfe line\nlast line without an end"
    (folder / "a.txt").write_bytes(raw)
    (folder / "a.txt.xz").write_bytes(lzma.compress(raw))
    objects = [json.dumps({"text": line, "n": 1}, ensure_ascii=False) for line in lines]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join([*objects, "{no json"]).encode()))
    pq.write_table(pa.table({"text": lines}), folder / "a.parquet")
    return {
        "blocks": Source(path=str(folder / "a.txt")),
        "compressed": Source(path=str(folder / "a.txt.xz")),
        "lines": Source(path=str(folder / "a.txt"), documents="lines"),
        "paragraphs": Source(path=str(folder / "a.txt"), documents="blank_lines"),
        "window": Source(path=str(folder / "a.txt"), first_line=20, num_lines=300),
        "capped": Source(path=str(folder / "a.txt"), max_characters=9000),
        "jsonl": Source(path=str(folder / "a.jsonl.gz")),
        "parquet": Source(path=str(folder / "a.parquet")),
        "folder": Source(path=str(folder)),
    }


@pytest.mark.parametrize(
    "kind", ["blocks", "compressed", "lines", "paragraphs", "window", "capped", "jsonl", "parquet", "folder"]
)
def test_the_documents_of_all_parts_are_those_of_the_text(kind, tmp_path, small_parts) -> None:
    source = write_kinds(tmp_path)[kind]
    whole = Counter()
    expected = [d[:3] for d in read_documents([source], whole, field="text", block_lines=8)]
    reading = Reading(8)
    parts = list(reading.parts([Text([source], "text")]))
    found, dropped, _ = documents_in(parts, 8)
    assert found == expected
    assert +(dropped + reading.dropped) == +whole
    if kind != "capped":
        assert len(parts) > 2
    # A paragraph is never cut.
    if kind != "paragraphs":
        assert all(piece.size <= 3 * SMALL for part in parts for piece in part.pieces)


def test_a_part_says_where_it_is(tmp_path, small_parts) -> None:
    lines = bundled_lines("en", 300)
    (tmp_path / "a.txt").write_text("\n".join(lines))
    parts = list(Reading(8).parts([Text([Source(path=str(tmp_path / "a.txt"))], "text")]))
    line = 1
    for part in parts:
        count = part.pieces[0].data.decode().rstrip("\n").count("\n") + 1
        assert part.place == f"{tmp_path}/a.txt, lines {line:,} to {line + count - 1:,}"
        assert part.pieces[0].data.decode().startswith(lines[line - 1])
        line += count
    assert line == len(lines) + 1


def test_small_files_share_a_part(tmp_path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text(f"line of file {number}\nand another {number}\n")
    (part,) = Reading(8).parts([Text([Source(path=str(tmp_path))], "text")])
    assert len(part.pieces) == 20
    assert part.place.startswith(f"{tmp_path}/00.txt, lines 1 to 2 to {tmp_path}/19.txt")


def test_a_line_without_an_end_and_text_without_borders_are_cut(tmp_path, small_parts, monkeypatch) -> None:
    monkeypatch.setattr(part_reader, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(part_reader, "MAX_PIECE_BYTES", 5000)
    endless = "éя" * 20_000
    (tmp_path / "endless.txt").write_text(endless)
    parts = list(Reading(8).parts([Text([Source(path=str(tmp_path / "endless.txt"))], "text")]))
    assert len(parts) > 10
    assert b"".join(piece.data for part in parts for piece in part.pieces).decode() == endless
    assert all(piece.data.decode() for part in parts for piece in part.pieces)
    (tmp_path / "same.txt").write_text("one and the same line\n" * 3000)
    parts = list(Reading(64).parts([Text([Source(path=str(tmp_path / "same.txt"))], "text")]))
    assert max(piece.size for part in parts for piece in part.pieces) < 12_000
    monkeypatch.setattr(part_reader, "MAX_JSON_BYTES", 4000)
    rows = [json.dumps({"text": "short"}), json.dumps({"text": "x" * 60_000}), json.dumps({"text": "end"})]
    (tmp_path / "long.jsonl").write_text("\n".join(rows))
    reading = Reading(8)
    found, dropped, _ = documents_in(
        list(reading.parts([Text([Source(path=str(tmp_path / "long.jsonl"))], "text")])), 8
    )
    assert [document[1] for document in found] == [["short"], ["end"]]
    assert reading.dropped + dropped == {"too_long": 1}


def write_text(folder: Path) -> tuple[Source, Source]:
    lines = bundled_lines("en", 1500) + bundled_lines("fr", 1500)
    (folder / "a.txt").write_text("\n".join(lines + lines[100:200]))
    (folder / "b.txt").write_text("\n".join([*bundled_lines("de", 300), *lines[:50]]))
    return Source(path=str(folder / "a.txt")), Source(path=str(folder / "b.txt"))


def build(folder: Path, source: Source, other: Source, pool: Pool, **settings) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    build_corpus(
        folder,
        sources=[source],
        evaluation={"other": [other]},
        settings=Corpora(**{"block_lines": 16, "held_out_share": 0.1} | settings),
        count_tokens=words,
        max_tokens=30,
        fields=FIELDS,
        pool=pool,
    )
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_processes_change_no_byte_and_parts_lose_nothing(tmp_path, small_parts, monkeypatch) -> None:
    texts = write_text(tmp_path)
    alone = build(tmp_path / "alone", *texts, Alone())
    pool = Processes(3)
    try:
        assert build(tmp_path / "three", *texts, pool) == alone
    finally:
        pool.close()
    assert set(alone) == {"train.arrow", "held_out.arrow", "evaluation/other.arrow", "statistics.json"}
    # As one part: the same lines in the same splits.
    monkeypatch.setattr(part_reader, "PART_BYTES", 1 << 30)
    build(tmp_path / "one", *texts, Alone())
    for name in ("train", "held_out", "evaluation/other"):
        parts, one = (
            Examples(tmp_path / folder / f"{name}.arrow").texts(slice(None)) for folder in ("alone", "one")
        )
        assert " ".join(parts).split() == " ".join(one).split()
        assert len(one) <= len(parts) <= 1.4 * len(one)
    statistics = [json.loads((tmp_path / f / "statistics.json").read_text()) for f in ("alone", "one")]
    for key in ("dropped", "changed", "sources", "held_out_by"):
        assert statistics[0][key] == statistics[1][key]


def test_too_few_documents_for_the_share_in_parts(tmp_path, small_parts) -> None:
    texts = write_text(tmp_path)
    alone = build(tmp_path / "alone", *texts, Alone(), held_out_share=1e-9)
    assert json.loads(alone["statistics.json"])["held_out_by"] == "first"
    assert json.loads(alone["statistics.json"])["splits"]["held_out"]["examples"] > 0


class StoppedError(Exception):
    """A run is stopped here."""


@pytest.mark.parametrize("parts", [1, 9])
def test_a_second_cleaning_that_was_stopped_goes_on(parts, tmp_path, small_parts, monkeypatch) -> None:
    """Stopped in it, or after it: what both cleanings left is told apart."""
    texts = write_text(tmp_path)
    alone = build(tmp_path / "alone", *texts, Alone(), held_out_share=1e-9)
    note = PartFiles.note

    def stop(files: PartFiles, index: int, file: str) -> None:
        note(files, index, file)
        if files.name == "lines-first" and len(files) == parts:
            raise StoppedError

    monkeypatch.setattr(PartFiles, "note", stop)
    with pytest.raises(StoppedError):
        build(tmp_path / "begun", *texts, Alone(), held_out_share=1e-9)
    monkeypatch.setattr(PartFiles, "note", note)
    assert build(tmp_path / "begun", *texts, Alone(), held_out_share=1e-9) == alone


def test_workers_write_themselves_where_they_share_the_disk(tmp_path, small_parts, monkeypatch) -> None:
    """No bytes of a part pass through the pool; without a disk in common all do, and nothing else changes."""
    texts = write_text(tmp_path)
    passed: dict[bool, int] = {}

    class Counted(Alone):
        def map(self, work, shared, tasks):
            for index, result in super().map(work, shared, tasks):
                passed[self.shares_disk] = passed.get(self.shares_disk, 0) + len(result)
                yield index, result

    class Apart(Counted):
        shares_disk = False

    assert build(tmp_path / "one", *texts, Counted()) == build(tmp_path / "other", *texts, Apart())
    assert passed[True] * 50 < passed[False]


@pytest.mark.parametrize("step", ["cleaned", "packed"])
def test_what_was_finished_is_not_made_again(step, tmp_path, small_parts) -> None:
    source, other = write_text(tmp_path)
    whole = build(tmp_path / "whole", source, other, Alone())

    def stop(what: str, done: int, total: int) -> None:
        if what == step and done == 7:
            raise StoppedError

    begun = partial(
        build_corpus,
        tmp_path / "begun",
        sources=[source],
        evaluation={"other": [other]},
        settings=Corpora(block_lines=16, held_out_share=0.1),
        count_tokens=words,
        max_tokens=30,
        fields=FIELDS,
    )
    (tmp_path / "begun").mkdir()
    with pytest.raises(StoppedError):
        begun(progress=stop)
    # One part is damaged, another one was cut short.
    name = {"cleaned": "lines", "packed": "examples"}[step]
    first, second, *_ = sorted((tmp_path / "begun" / "parts").glob(f"{name}-*.arrow"))
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes(b"x" + second.read_bytes()[1:])
    made = Counter()
    begun(progress=lambda what, done, total: made.update([what]))
    folder = tmp_path / "begun"
    assert {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    } == whole
    parts = len(list(Reading(16).parts([Text([source], "a"), Text([other], "b", 2)])))
    assert made[step] == parts - 5
    assert made["cleaned"] == (parts - 5 if step == "cleaned" else 0)


def test_a_worker_that_dies_is_replaced(tmp_path) -> None:
    mark, said = tmp_path / "mark", []
    mark.write_text("")
    pool = Processes(2, said.append)
    tasks = [Task(index, f"place {index}", ("once" if index == 3 else str(index),)) for index in range(8)]
    try:
        found = dict(pool.map(ends, str(mark), tasks))
    finally:
        pool.close()
    assert found == {index: b"once" if index == 3 else str(index).encode() for index in range(8)}
    assert said == ["corpora: a worker was lost, place 3 is worked on again"]


def test_workers_that_died_between_two_texts_are_replaced() -> None:
    pool = Processes(2)
    tasks = [Task(index, "a", (str(index),)) for index in range(4)]
    try:
        assert len(dict(pool.map(ends, "", tasks))) == 4
        processes = [process for worker in pool._pool for process in worker.executor._processes.values()]
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert dict(pool.map(ends, "", tasks)) == {index: str(index).encode() for index in range(4)}
    finally:
        pool.close()


def test_a_part_that_ends_three_workers_is_named(tmp_path) -> None:
    pool = Processes(2)
    tasks = [
        Task(index, f"a.txt, lines {index} to {index}", ("always" if index == 4 else "fine",))
        for index in range(9)
    ]
    with pytest.raises(CorpusError, match=r"corpora.workers 2: a worker was lost 3 times on a.txt, lines 4"):
        list(pool.map(ends, str(tmp_path), tasks))
    assert pool._pool == []


def test_an_error_of_a_worker_is_the_users_own(tmp_path) -> None:
    pool = Processes(2)
    with pytest.raises(CorpusError, match="has no such field"):
        list(pool.map(fails, "", [Task(0, "a", ("1",)), Task(1, "b", ("2",))]))
    assert pool._pool == []


def test_one_worker_and_one_part_start_no_process(tmp_path) -> None:
    pool = Processes(2)
    assert list(pool.map(ends, str(tmp_path), [Task(0, "a", (str(os.getpid()),))])) == [
        (0, str(os.getpid()).encode())
    ]
    assert pool._pool == []


def test_a_worker_imports_what_it_needs() -> None:
    """Each of these takes as long as a second of text."""
    pool = Processes(1)
    try:
        tasks = [Task(index, "a", ("a",)) for index in range(2)]
        assert [imported for _, imported in pool.map(modules, None, tasks)] == [b"", b""]
    finally:
        pool.close()


def test_a_worker_ends_with_its_parent() -> None:
    # In tests/faults/test_corpora_kills.py too, by killing the parent.
    pool = Processes(2)
    list(pool.map(ends, "", [Task(index, "a", ("fine",)) for index in range(4)]))
    processes = [process for worker in pool._pool for process in worker.executor._processes.values()]
    assert len(processes) == 2
    pool.close()
    assert not any(process.is_alive() for process in processes)


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    before = source_states([Source(path=str(path))], field="languages.x.text")
    refuse_changed(before, field="languages.x.text")
    path.write_text("one\ntwo\nthree\n")
    with pytest.raises(CorpusError, match=r"changed while it was read \(8 bytes then, 14 now\)"):
        refuse_changed(before, field="languages.x.text")
    path.unlink()
    with pytest.raises(CorpusError, match=r"changed while it was read \(it is gone\)"):
        refuse_changed(before, field="languages.x.text")


def test_a_file_twice_in_a_text_is_refused_and_windows_of_one_are_not(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("one\n" * 10)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")

    def check(*sources: dict) -> None:
        source_states([Source(**source) for source in sources], field="languages.x.text")

    name = str(tmp_path / "a.txt")
    for again in (name, str(tmp_path / "link.txt"), str(tmp_path / "*.txt")):
        with pytest.raises(CorpusError, match=r"languages.x.text\[1\] .*is read twice"):
            check({"path": name}, {"path": again})
    check({"path": name, "num_lines": 4}, {"path": name, "first_line": 5})
    check({"path": name, "first_line": 5}, {"path": name, "num_lines": 4})
    with pytest.raises(CorpusError, match="is read twice"):
        check({"path": name, "num_lines": 5}, {"path": name, "first_line": 5, "num_lines": 2})


def test_a_part_is_read_again_only_if_it_is_whole(tmp_path) -> None:
    files = PartFiles(tmp_path, "lines")
    for index in range(3):
        files.write(index, b"bytes %d" % index)
    shutil.copy(next(tmp_path.glob("lines-000001.*")), tmp_path / "lines-000007.00.arrow")
    again = PartFiles(tmp_path, "lines")
    assert [again.has(index) for index in (0, 1, 2, 3, 7)] == [True, True, True, False, False]
    assert again.read(1) == b"bytes 1"
    assert len(again) == 3
