"""A run continues when its data have moved: it is told by what it asks for, artefacts by content."""

import shutil

import pytest

from polydistill.config.load import parse_recipe
from polydistill.config.yaml_text import read_resolved
from polydistill.errors import RunFolderError
from polydistill.pipelines.run import run_recipe


def stamps(run) -> dict[str, int]:
    """File → time of its last change, for everything that a run made."""
    made = [path for folder in ("corpora", "store", "tokenizer") for path in (run / folder).rglob("*")]
    assert made
    return {str(path): path.stat().st_mtime_ns for path in made if path.is_file()}


def test_another_root_makes_nothing_again(tmp_path, recipe_values, texts, teachers, monkeypatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "data").mkdir(parents=True)
    shutil.copy(texts["ru"], here / "data/ru.txt")
    shutil.copytree(teachers["ru"], here / "models/ru")
    plain = recipe_values | {
        "teachers": {"ru": str(here / "models/ru")},
        "languages": {"ru": {"text": str(here / "data/ru.txt"), "teachers": ["ru"]}},
    }
    rooted = recipe_values | {
        "teachers": {"ru": "$data/models/ru"},
        "languages": {"ru": {"text": "$data/data/ru.txt", "teachers": ["ru"]}},
    }
    # A run from before the recipe named a root.
    run = run_recipe(parse_recipe(plain), until="score", show=lambda line: None)
    made = stamps(run)
    run_recipe(parse_recipe(rooted, [f"data={here}"]), until="score", show=lambda line: None)
    assert stamps(run) == made
    assert read_resolved(run / "recipe.yaml")["data"] == str(here)
    shutil.move(here, there)
    monkeypatch.setenv("POLYDISTILL_DATA", str(there))
    run_recipe(parse_recipe(rooted), until="score", show=lambda line: None)
    assert stamps(run) == made
    recorded = read_resolved(run / "recipe.yaml")
    assert recorded["data"] == str(there)
    assert recorded["teachers"]["ru"]["model"] == str(there / "models/ru")
    # Another file below the root is another recipe, as before.
    shutil.copy(there / "data/ru.txt", there / "data/other.txt")
    other = rooted | {"languages": {"ru": {"text": "$data/data/other.txt", "teachers": ["ru"]}}}
    with pytest.raises(RunFolderError, match="other settings"):
        run_recipe(parse_recipe(other), until="score", show=lambda line: None)
