"""Where a run is: its record, its bars, and what `polydistill status` prints."""

import io
import json
import time

import pytest
from rich.console import Console

from polydistill.disk import lock, lock_holder
from polydistill.errors import RunFolderError
from polydistill.reports import progress
from polydistill.reports.progress import (
    PROGRESS,
    Meter,
    Position,
    bars,
    clock,
    counting,
    print_status,
    read_position,
)


def printed(folder) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_status(folder, console)
    return console.file.getvalue()


def test_a_meter_estimates_time_from_its_own_speed(tmp_path, monkeypatch) -> None:
    """Work that was finished earlier says nothing of the speed."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    seen: list[Position] = []
    meter = Meter(tmp_path, seen.append)
    meter.begin(["score", "train"])
    meter.enter("score")
    meter.count("store/ko/ko", 600, 1000, "examples")
    assert seen[-1].left is None
    now[0] += 10
    meter.count("store/ko/ko", 700, 1000, "examples")
    assert seen[-1].left == pytest.approx(30)
    assert seen[-1].counted == "700/1,000 examples, 0:30 left"
    meter.count("store/zh/zh", 10, 1000, "examples")
    assert seen[-1].left is None
    now[0] += 5
    meter.enter("train")
    assert seen[-1].seconds == {"score": 15.0, "train": 0.0}
    meter.count("student", 1, 4, "steps", left=77.0, note="mlm 2.5")
    assert seen[-1].left == 77.0
    meter.end("interrupted")
    assert read_position(tmp_path) == seen[-1]
    # A later start of the same run adds to the times.
    again = Meter(tmp_path)
    again.begin(["score", "train"])
    again.enter("score")
    now[0] += 2
    again.end("finished")
    assert read_position(tmp_path).seconds["score"] == 17.0


def test_a_meter_writes_once_a_second(tmp_path, monkeypatch) -> None:
    """A step may take a millisecond."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = Meter(tmp_path)
    meter.begin(["train"])
    meter.enter("train")
    meter.count("student", 1, 9, "steps")
    assert read_position(tmp_path).done == 0
    now[0] += 1
    meter.count("student", 2, 9, "steps")
    assert read_position(tmp_path).done == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"stages": 3}',
        '{"stages": ["a"], "stage": 1}',
        '{"stages": ["a"], "stage": "a", "note": 5}',
        '{"stages": [2]}',
        "\udc00",
    ],
)
def test_a_damaged_record_is_none(tmp_path, text) -> None:
    """It stops neither a run nor its status."""
    (tmp_path / PROGRESS).write_text(text, "utf-8", errors="surrogatepass")
    (tmp_path / "recipe.yaml").write_text("name: a\n")
    assert read_position(tmp_path) is None
    assert "no stage has begun" in printed(tmp_path)
    Meter(tmp_path).begin(["a"])


def test_status_tells_running_from_stopped(tmp_path) -> None:
    """By the lock: a killed process leaves a record that says `running`."""
    meter = Meter(tmp_path)
    meter.begin(["corpora", "train", "report"])
    meter.enter("corpora")
    meter.enter("train")
    (tmp_path / "run.log").write_text("".join(f"line {number}\n" for number in range(9)))
    assert lock_holder(tmp_path) is None
    shown = printed(tmp_path)
    assert "interrupted" in shown
    assert "stopped here" in shown
    assert "The same command continues it." in shown
    assert "line 4" in shown
    assert "line 3" not in shown
    with lock(tmp_path):
        shown = printed(tmp_path)
    assert "running, process" in shown
    assert "stopped here" not in shown
    meter.end("failed")
    assert "failed; its last lines say why" in printed(tmp_path)
    meter.enter("report")
    meter.end("finished")
    shown = printed(tmp_path)
    assert ": finished" in shown
    assert shown.count("done") == 3


def test_status_tells_where_a_run_was_told_to_end(tmp_path) -> None:
    """`polydistill train` leaves out later stages."""
    meter = Meter(tmp_path)
    meter.begin(["train", "report"])
    meter.enter("train")
    meter.end("finished")
    assert "finished up to train" in printed(tmp_path)


def test_status_of_no_run(tmp_path) -> None:
    """A wrong path is told."""
    with pytest.raises(RunFolderError, match="is not a run's folder"):
        printed(tmp_path)


def test_bars_are_for_terminals(tmp_path) -> None:
    """The whole's time left is a lower bound until its last stage."""
    with bars(Console(file=io.StringIO())) as watch:
        assert watch is None
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with bars(console) as watch:
        meter = Meter(tmp_path, watch)
        meter.begin(["train", "report"])
        meter.enter("train")
        meter.count("student", 50, 100, "steps", left=65.0, note="mlm 2.5")
        console.print("a line of the run")
    shown = console.file.getvalue()
    for part in (
        "train (1 of 2)",
        "at least 1:05 left",
        "50/100 steps, 1:05 left",
        "mlm 2.5",
        "a line of the run",
    ):
        assert part in shown, part
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with counting(console) as count:
        count("cost", 3, 12, "measurements")
    assert "3/12 measurements" in console.file.getvalue()


def test_a_full_disk_stops_no_run(tmp_path, monkeypatch) -> None:
    """The record is for people; the run's own files report a full disk."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    meter = Meter(tmp_path)
    meter.begin(["a"])
    meter.enter("a")
    assert read_position(tmp_path) is None


def test_clock() -> None:
    """Minutes, or hours."""
    assert (clock(59.6), clock(3725)) == ("1:00", "1:02:05")
    assert progress.EVERY > 0
