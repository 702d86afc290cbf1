"""Files and folders: replaced whole, and a full disk reported."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


def test_an_artefact_is_replaced_whole(tmp_path, monkeypatch) -> None:
    """Killed while the old folder is being removed: the new one is in its place."""

    from polydistill.disk import replace_folder

    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "what").write_text(name)
    real = shutil.rmtree

    def dies(path, ignore_errors=False):
        if Path(path).exists():
            raise KeyboardInterrupt
        real(path, ignore_errors=ignore_errors)

    monkeypatch.setattr("polydistill.disk.shutil.rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "what").read_text() == "new"


def test_a_full_disk_while_weights_are_written() -> None:
    from safetensors import SafetensorError

    from polydistill.disk import explain_disk_errors
    from polydistill.errors import DiskError

    with pytest.raises(DiskError, match="no space left"), explain_disk_errors(Path("run")):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), explain_disk_errors(Path("run")):
        raise SafetensorError("something else")
