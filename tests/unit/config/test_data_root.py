"""`$data` in recipes: one setting says where public data and models are; the recipes here use it."""

import re
from pathlib import Path

import pytest
import yaml
from tests.docs.pages import ROOT

from polydistill.config.load import load_recipe, parse_recipe
from polydistill.errors import RecipeError
from polydistill.pipelines.grid.children import children_of

MERGE = {
    "name": "x",
    "teachers": {"a": "$data/models/a", "b": {"model": "org/b", "tokenizer": "$data/models/b"}},
    "languages": {"en": {"text": ["$data/en.txt", "$database/en.txt", "x/$data"], "teachers": ["a", "b"]}},
}
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def no_root(monkeypatch) -> None:
    monkeypatch.delenv("POLYDISTILL_DATA", raising=False)


def test_the_setting_comes_before_the_variable_and_an_override_before_both(monkeypatch) -> None:
    monkeypatch.setenv("POLYDISTILL_DATA", "env/")
    for values, overrides, root in (
        (MERGE, [], "env/"),
        (MERGE | {"data": "key"}, [], "key"),
        (MERGE | {"data": None}, [], "env/"),
        (MERGE | {"data": "key"}, ["data=over"], "over"),
    ):
        recipe = parse_recipe(values, overrides)
        bare = root.rstrip("/")
        assert recipe.teachers["a"].model == f"{bare}/models/a"
        assert (recipe.teachers["b"].model, recipe.teachers["b"].tokenizer) == ("org/b", f"{bare}/models/b")
        # Only a whole first part is the root.
        assert [source.path for source in recipe.languages["en"].text] == [
            f"{bare}/en.txt",
            "$database/en.txt",
            "x/$data",
        ]
        # What a run writes needs neither the variable nor the override to be read again.
        monkeypatch.delenv("POLYDISTILL_DATA")
        assert parse_recipe(recipe.model_dump(mode="json")) == recipe
        assert recipe.data == root
        monkeypatch.setenv("POLYDISTILL_DATA", "env/")


def test_the_root_alone_and_the_home_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("POLYDISTILL_DATA", "~/public")
    recipe = parse_recipe(MERGE | {"reuse": ["$data"]})
    assert recipe.reuse == [f"{tmp_path}/public"]


def test_without_a_root_the_path_and_the_remedy_are_named() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MERGE)
    assert (caught.value.field, caught.value.value) == ("teachers.a", "$data/models/a")
    assert "POLYDISTILL_DATA" in caught.value.remedy
    assert "--set data=FOLDER" in caught.value.remedy
    # Recipes without it need none, and keep no trace of a root that they do not use.
    plain = {"name": "x", "teachers": {"a": "a"}, "languages": {"en": {"text": "a.txt", "teachers": ["a"]}}}
    assert parse_recipe(plain).data == ""


def test_each_run_of_a_grid_has_its_own_root_or_the_grids() -> None:
    grid = {
        "recipe": "grid",
        "name": "g",
        "base": {key: value for key, value in MERGE.items() if key != "name"},
        "runs": {"one": {}, "two": {"data": "own"}},
    }
    with pytest.raises(RecipeError, match=r"runs\.one: teachers\.a"):
        children_of(parse_recipe(grid))
    recipe = parse_recipe(grid, ["data=grids"])
    # The grid's own record has `$data` still, and names the root once.
    assert recipe.base["teachers"]["a"] == "$data/models/a"
    models = [child.teachers["a"].model for child in children_of(recipe).values()]
    assert models == ["grids/models/a", "own/models/a"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_recipes_of_the_repository_read_the_data_root_and_no_machines_folder(path) -> None:
    text = path.read_text("utf-8")
    # Of other folders, only recipes may be named.
    assert "../" not in re.sub(r"extends: \.\./[\w-]+/[\w-]+\.yaml", "", text)
    recipe = load_recipe(path, ["data=/root-of-data"])
    children = children_of(recipe).values() if recipe.recipe == "grid" else [recipe]
    for values in (child.model_dump(mode="json") for child in children):
        assert "$data" not in yaml.safe_dump(values)
        # Whatever is absolute is below the root, in one of its two folders.
        for value in strings(values):
            absolute = Path(value).is_absolute() and value != "/root-of-data"
            assert not absolute or value.startswith(("/root-of-data/data/", "/root-of-data/models/")), value


def strings(values: object) -> list[str]:
    if isinstance(values, dict):
        return [text for value in values.values() for text in strings(value)]
    if isinstance(values, list):
        return [text for value in values for text in strings(value)]
    return [values] if isinstance(values, str) else []


def test_nothing_else_in_the_recipes_folder_names_a_machines_folder() -> None:
    for path in (ROOT / "recipes").rglob("*.py"):
        assert "../" not in path.read_text("utf-8"), path
