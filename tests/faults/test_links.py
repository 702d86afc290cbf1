"""A shared run folder: links and pipes in it never redirect a run's writes, nor bring foreign content into a
model.
"""

import os
import shutil
from pathlib import Path

import pytest
from tests.faults.test_damaged_records import run

from polydistill.artefacts import artefact, copy_artefact
from polydistill.disk import lock, open_own, replace_folder, write_bytes
from polydistill.errors import RunFolderError
from polydistill.reports.page import report_run
from polydistill.tools.verify import verify_run

PRECIOUS = "what nobody may write into"


@pytest.fixture
def precious(tmp_path) -> Path:
    """Another user's file, in a folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text(PRECIOUS, "utf-8")
    return tmp_path / "elsewhere" / "file"


def untouched(file: Path) -> bool:
    return file.read_text("utf-8") == PRECIOUS and [path.name for path in file.parent.iterdir()] == [
        file.name
    ]


@pytest.mark.parametrize(
    "name", [".lock", "run.log", "recipe.yaml.tmp", "timing.json.tmp", "report/index.html.tmp"]
)
@pytest.mark.parametrize("hard", [False, True])
def test_nothing_is_written_through_a_link_in_a_runs_folder(damaged, precious, name, hard) -> None:
    values, folder = damaged
    place = folder / name
    place.unlink(missing_ok=True)
    (place.hardlink_to if hard else place.symlink_to)(precious)
    if hard and name.endswith(".tmp"):
        run(values)
    else:
        with pytest.raises(RunFolderError, match=f"{place}.*; remove"):
            run(values)
    assert untouched(precious)
    place.unlink(missing_ok=True)
    run(values)
    assert untouched(precious)


@pytest.mark.parametrize(
    "name",
    [
        "student",
        "report",
        "student/checkpoints",
        "store/ru",
        "evaluation.partial",
        "student/final/more",
        "corpora.old",
    ],
)
def test_a_folder_that_is_a_link_is_refused_before_anything_is_written(damaged, precious, name) -> None:
    values, folder = damaged
    place = folder / name
    shutil.rmtree(place, ignore_errors=True)
    place.symlink_to(precious.parent)
    for write in (lambda: run(values), lambda: report_run(folder), lambda: verify_run(folder)):
        with pytest.raises(RunFolderError, match=f"{place}: is a link"):
            write()
    assert untouched(precious)
    place.unlink()
    run(values)
    assert untouched(precious)


def test_half_made_folders_that_are_links_are_replaced(tmp_path, precious) -> None:
    for name in ("made.partial", "made.old", "made"):
        (tmp_path / name).symlink_to(precious.parent)
    with artefact(tmp_path / "made", {"a": 1}) as folder:
        (folder / "file").write_text("new", "utf-8")
    assert untouched(precious)
    assert (tmp_path / "made" / "file").read_text("utf-8") == "new"
    assert not (tmp_path / "made").is_symlink()
    (tmp_path / "other.partial").symlink_to(precious.parent)
    with artefact(tmp_path / "other", {"a": 1}, keep_partial=True) as folder:
        (folder / "file").write_text("new", "utf-8")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "new").mkdir()
    replace_folder(tmp_path / "new", tmp_path / "gone")
    assert untouched(precious)


def test_a_pipe_is_no_log_and_nobody_waits_for_its_reader(tmp_path) -> None:
    os.mkfifo(tmp_path / "run.log")
    with pytest.raises(RunFolderError, match="is not a regular file"), open_own(tmp_path / "run.log"):
        pass
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(RunFolderError, match="is not a regular file"), lock(tmp_path):
        pass
    os.mkfifo(tmp_path / "a.json.tmp")
    write_bytes(tmp_path / "a.json", b"1")
    assert (tmp_path / "a.json").read_bytes() == b"1"


def reused(values: dict, folder: Path) -> dict:
    return values | {"output": str(folder.with_name("second")), "reuse": [str(folder)]}


def test_reuse_copies_what_the_stamp_lists_and_nothing_else(damaged, precious) -> None:
    values, folder = damaged
    final, second = folder / "student" / "final", folder.with_name("second") / "student" / "final"
    files = {path.relative_to(final) for path in final.rglob("*") if path.is_file()}
    (final / "secret.txt").symlink_to(precious)
    (final / "secrets").symlink_to(precious.parent)
    (final / "pickle.bin").write_text("more", "utf-8")
    lines = run(reused(values, folder), until="train")
    assert any("student: taken from" in line for line in lines)
    assert {path.relative_to(second) for path in second.rglob("*") if path.is_file()} == files
    assert not any(path.is_symlink() for path in second.rglob("*"))
    assert (second / "model.safetensors").read_bytes() == (final / "model.safetensors").read_bytes()


def test_a_stamped_file_that_became_a_link_is_not_copied(tmp_path, precious) -> None:
    with artefact(tmp_path / "made", {"a": 1}) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text(PRECIOUS, "utf-8")
        (folder / "other").write_text("other", "utf-8")
    for place, target in (("deep/file", precious), ("deep", precious.parent)):
        if (tmp_path / "made" / place).is_dir():
            shutil.rmtree(tmp_path / "made" / place)
        else:
            (tmp_path / "made" / place).unlink()
        (tmp_path / "made" / place).symlink_to(target)
        (tmp_path / "copy").mkdir()
        with pytest.raises(RunFolderError, match="its file deep/file is a link"):
            copy_artefact(tmp_path / "made", tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")
        if (tmp_path / "made" / place).is_symlink() and place == "deep":
            break
        (tmp_path / "made" / place).unlink()
