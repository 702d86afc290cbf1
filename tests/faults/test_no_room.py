"""Disks that fill up, before a stage and during it."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

import pytest
from tests.faults.harness import expect_refusal, run

from polydistill.artefacts import artefact
from polydistill.disk import require_space
from polydistill.errors import DiskError


def test_no_space_left(tmp_path, monkeypatch) -> None:
    with pytest.raises(DiskError, match="no space left") as caught, artefact(tmp_path / "a", {"x": 1}):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "same command again" in caught.value.remedy
    assert not (tmp_path / "a").exists()


def test_a_stage_that_would_not_find_room_is_not_begun(recipe_values, monkeypatch) -> None:
    """With 32 KiB free the message names the stage and its need, which is close to what it then takes."""
    folder, missing = Path(recipe_values["output"]), {}
    usage = shutil.disk_usage(folder.parent)
    small = usage._replace(free=1 << 15)
    for stage, until in (("corpora/en", "corpora"), ("score/en/en", "score"), ("train", "train")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
        said = expect_refusal(
            recipe_values, str(folder), f"the stage {stage} needs about", "free some space", until=until
        )
        missing[stage] = float(re.search(r"about ([\d.]+) MiB, and only 0.0 MiB are free", said)[1])
        monkeypatch.undo()
        run(recipe_values, until)
    taken = {
        stage: sum(path.stat().st_size for path in (folder / place).rglob("*") if path.is_file()) / 2**20
        for stage, place in (
            ("corpora/en", "corpora/en"),
            ("score/en/en", "store/en/en"),
            ("train", "student"),
        )
    }
    # The message rounds to a tenth.
    # A corpus' lines and examples lie in parts beside it, until it is whole.
    assert missing["corpora/en"] == pytest.approx(3 * taken["corpora/en"], abs=0.1)
    assert missing["score/en/en"] == pytest.approx(taken["score/en/en"], rel=0.25)
    assert 0.7 * taken["train"] < missing["train"] < 1.6 * taken["train"]


def test_a_vocabulary_that_would_not_find_room_is_not_begun(texts, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "run"
    values = {
        "recipe": "pretrain",
        "name": "x",
        "output": str(folder),
        "languages": {"en": {"text": str(texts["en"])}},
        "tokenizer": {"size": 500},
        "model": {"model_type": "bert"},
    }
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 10))
    expect_refusal(
        values,
        str(folder / "tokenizer"),
        "the stage tokenizer needs about",
        "free some space",
        until="tokenizer",
    )
    assert not list(folder.glob("tokenizer*"))


def test_what_is_written_already_needs_no_room(tmp_path, monkeypatch) -> None:
    (tmp_path / "part").write_bytes(bytes(3 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    usage = shutil._ntuple_diskusage(8 << 20, 7 << 20, 1 << 20)
    require_space(tmp_path, 4 << 20, stage="x")
    with pytest.raises(DiskError, match=r"x needs about 2.0 MiB, and only 1.0 MiB are free"):
        require_space(tmp_path, 5 << 20, stage="x")
    # An estimate may be too high by a third.
    require_space(tmp_path, 4.3 * 2**20, stage="x")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "polydistill: a log is no longer written (No space left on device)\n",
        ),
        (ValueError("a bug"), "Traceback"),
    ],
)
def test_a_thread_that_meets_a_full_disk_says_a_line_of_it(monkeypatch, capsys, error, said) -> None:
    """TensorBoard writes in a thread."""
    import threading

    from polydistill import cli

    def fail() -> None:
        raise error

    monkeypatch.setattr(threading, "excepthook", cli.explain_thread)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    shown = capsys.readouterr().err
    assert said in shown
    assert ("Traceback" in shown) == (said == "Traceback")
