"""`~` in recipes and on the command line: expanded once, everywhere alike."""

from pathlib import Path

import pytest
import yaml

from polydistill.config.load import load_recipe, parse_recipe
from polydistill.pipelines.run_folder import open_run


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


MERGE = {
    "name": "x",
    "output": "~/runs/x",
    "reuse": ["~/runs/y", "z"],
    "teachers": {"a": "~/models/a", "b": {"model": "org/b", "tokenizer": "~/models/b"}},
    "languages": {
        "en": {
            "text": ["~/text/en.txt", "~notes.txt"],
            "teachers": ["a", "b"],
            "evaluation": {"news": [{"path": "~/text/news.txt"}]},
        }
    },
}


def test_every_path_of_a_recipe_is_expanded_alike(home) -> None:
    recipe = parse_recipe(MERGE)
    assert recipe.output == f"{home}/runs/x"
    assert recipe.reuse == [f"{home}/runs/y", "z"]
    assert recipe.teachers["a"].model == f"{home}/models/a"
    assert (recipe.teachers["b"].model, recipe.teachers["b"].tokenizer) == ("org/b", f"{home}/models/b")
    language = recipe.languages["en"]
    # A path that only looks like it stays: a file of that name.
    assert [source.path for source in language.text] == [f"{home}/text/en.txt", "~notes.txt"]
    assert language.evaluation["news"][0].path == f"{home}/text/news.txt"
    # The folder of checkpoints is the folder of everything else.
    assert open_run(recipe).path == home / "runs" / "x"


def test_overrides_and_what_is_extended_are_too(home) -> None:
    (home / "base.yaml").write_text(yaml.safe_dump(MERGE), "utf-8")
    (home / "mine.yaml").write_text("extends: ~/base.yaml\nname: mine\n", "utf-8")
    recipe = load_recipe("~/mine.yaml", ["output=~/elsewhere"])
    assert (recipe.name, recipe.output) == ("mine", f"{home}/elsewhere")


def test_arguments_of_commands(home) -> None:
    from polydistill.cli import with_home_argument

    assert with_home_argument("~/x") == f"{home}/x"
    assert with_home_argument("--output=~/x") == f"{home}/x".join(["--output=", ""])
    for kept in ("--set", "output=~/x", "a~b", "--set=training.max_steps=3", "-x"):
        assert with_home_argument(kept) == kept
    assert Path(with_home_argument("~")) == home
