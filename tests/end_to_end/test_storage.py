"""A run's corpora and stores on storage: another machine trains from them."""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from polydistill.config.load import parse_recipe
from polydistill.errors import ClusterError, RecipeError, RunFolderError
from polydistill.pipelines import run_folder
from polydistill.pipelines.run import run_recipe
from polydistill.pipelines.stages import corpora, scoring
from polydistill.remote import RemoteRun
from polydistill.tools.upload import upload_run


def content(folder: Path, pattern: str) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.glob(pattern))}


def refuses(*arguments: object, **settings: object) -> None:
    """Stands in for work that must not be done again."""
    raise AssertionError("this was done on another machine")


def test_a_machine_that_has_not_scored_trains(recipe_values, tmp_path, monkeypatch) -> None:
    url = f"file://{tmp_path}/storage/small"
    scored = parse_recipe(recipe_values)
    run_recipe(scored, until="score")
    console = Console(file=io.StringIO(), width=200)
    uploaded = upload_run(scored.folder, url, console)
    # Two corpora, three stores.
    assert uploaded == 5
    assert f"5 uploaded to {url}" in console.file.getvalue()
    assert upload_run(scored.folder, url, console) == 0
    made = content(scored.folder, "[cs]*/*/**/*.arrow")
    assert len(made) > 6
    shutil.rmtree(scored.folder)
    monkeypatch.setattr(corpora, "build_corpus", refuses)
    monkeypatch.setattr(scoring, "score", refuses)
    said: list[str] = []
    elsewhere = parse_recipe(recipe_values | {"output": str(tmp_path / "elsewhere"), "reuse": [url]})
    run_recipe(elsewhere, show=said.append)
    assert content(elsewhere.folder, "[cs]*/*/**/*.arrow") == made
    assert f"store/en/en2: fetched from {url}" in said
    assert (elsewhere.folder / "student" / "final" / "model.safetensors").is_file()
    # All is here now: the storage may go.
    shutil.rmtree(tmp_path / "storage")
    said.clear()
    run_recipe(elsewhere, show=said.append)
    assert not any("fetched" in line for line in said)


@pytest.fixture
def stored(tmp_path) -> tuple[RemoteRun, Path, dict]:
    """A remote run with one artefact, `store/a/b`."""
    inputs = {"made": "from this"}
    with run_folder.artefact(tmp_path / "run" / "store" / "a" / "b", inputs) as folder:
        (folder / "one.arrow").write_bytes(b"one")
        (folder / "below").mkdir()
        (folder / "below" / "two.arrow").write_bytes(b"two")
    remote = RemoteRun(f"file://{tmp_path}/storage", "reuse[0]")
    assert remote.put("store/a/b", tmp_path / "run" / "store" / "a" / "b")
    return remote, tmp_path / "storage" / "store" / "a" / "b", inputs


def test_other_inputs_and_an_upload_that_was_cut_short_are_not_there(stored, tmp_path) -> None:
    remote, place, inputs = stored
    target = tmp_path / "here"
    assert not remote.fetch("store/a/b", {"made": "from that"}, target)
    assert not remote.fetch("store/a/c", inputs, target)
    assert not target.exists()
    assert remote.fetch("store/a/b", inputs, target)
    assert content(target, "**/*.arrow") == {"one.arrow": b"one", "below/two.arrow": b"two"}
    shutil.rmtree(target)
    (place / "stamp.json").unlink()
    assert not remote.fetch("store/a/b", inputs, target)


@pytest.mark.parametrize("damage", ["bytes", "stamp", "outside"])
def test_damage_on_the_storage_is_named_and_leaves_nothing(damage, stored, tmp_path) -> None:
    remote, place, inputs = stored
    stamp = json.loads((place / "stamp.json").read_text())
    if damage == "bytes":
        (place / "below" / "two.arrow").write_bytes(b"tw0")
    elif damage == "stamp":
        (place / "stamp.json").write_text("{")
    else:
        stamp["files"]["../../../evil"] = "0"
        (place / "stamp.json").write_text(json.dumps(stamp))
        (tmp_path / "evil").write_text("evil")
        (tmp_path / "storage" / "evil").write_text("evil")
    with pytest.raises(ClusterError, match=r"reuse\[0\].*store/a/b.*is damaged"):
        remote.fetch("store/a/b", inputs, tmp_path / "deep" / "er" / "here")
    assert not (tmp_path / "deep" / "er" / "here").exists()
    assert not (tmp_path / "deep" / "evil").exists()


def test_a_storage_that_refuses_and_what_is_no_run(tmp_path, recipe_values) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(RunFolderError, match="has no corpus and no store"):
        upload_run(tmp_path / "nowhere", "file:///tmp/x", console)
    with run_folder.artefact(tmp_path / "other" / "store" / "a" / "b", {}) as folder:
        (folder / "one.arrow").write_bytes(b"one")
    (tmp_path / "other" / "artefacts.json").write_text('{"store/a/b": "store/a/b"}')
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ClusterError, match=r"cannot be (read|written).*Not a directory"):
        upload_run(tmp_path / "other", f"file://{tmp_path}/file/run", console)
    with pytest.raises(RecipeError, match=r"reuse\[0\] 'nothing://x': cannot be used"):
        run_recipe(parse_recipe(recipe_values | {"reuse": ["nothing://x"]}))
    assert not Path(recipe_values["output"]).exists()
