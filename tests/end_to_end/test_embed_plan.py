"""Embed recipes before they run: plans, errors, extended recipes."""

import io
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tests.embedding import make_data, recipe_of, run

from polydistill.config.load import load_recipe, parse_recipe
from polydistill.errors import UserError
from polydistill.pipelines.plan import plan_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """See `make_data`."""
    return make_data(tmp_path_factory.mktemp("embed"))


def planned(values: dict) -> tuple[list, str]:
    console = Console(width=200, record=True, file=io.StringIO())
    return plan_recipe(parse_recipe(values), (), console), console.export_text()


def test_a_plan_shows_sizes_and_every_error(data, tmp_path) -> None:
    conflicts, shown = planned(recipe_of(data, tmp_path / "run"))
    assert conflicts == []
    assert "x 8 float16" in shown
    assert "projected to 8" in shown
    assert "train 100 steps" in shown
    assert not (tmp_path / "run").exists()
    values = recipe_of(
        data,
        tmp_path / "run",
        student={"model": str(data / "narrow"), "projection": False},
        languages={"en": {"text": str(data / "test.en.txt")}},
    )
    conflicts, _ = planned(values)
    assert [(each.level, "student.projection" in each.what) for each in conflicts] == [("error", True)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": "nowhere/at/all"}, "nowhere/at/all.*no such folder"),
        ({"sentences": {"max_length": 65}}, r"sentences\.max_length 65: the student reads at most 64"),
        ({"languages": {"en": {}}}, "give `text`, `translations`, or both"),
        ({"languages": {"en": {"text": "gone.txt"}}}, r"languages\.en\.text\[0\].*no such file"),
        ({"languages": {"en": {"translations": "gone.tsv"}}}, r"translations\[0\].*no such file"),
        ({"loss": "l1"}, "loss 'l1'"),
        ({"training": {"max_steps": 0}}, "training.max_steps"),
        ({"evaluation": {"similarity": {"sts": "gone.tsv"}}}, r"evaluation\.similarity\.sts\.path.*no such"),
        ({"evaluation": {"retrieval": {"x": {"files": {"en": "a.txt"}}}}}, "at least 2"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(data, tmp_path, changes, said) -> None:
    with pytest.raises(UserError, match=said):
        run(recipe_of(data, tmp_path / "run", **changes))
    assert not (tmp_path / "run/student").exists()
    assert not (tmp_path / "run/sentences").exists()


def test_null_removes_an_entry_of_an_extended_recipe(data, tmp_path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(recipe_of(data, tmp_path / "run")), "utf-8")
    (tmp_path / "less.yaml").write_text(
        "extends: base.yaml\nlanguages: {fr: null}\nevaluation: {retrieval: {pair: null}}\n", "utf-8"
    )
    loaded = load_recipe(tmp_path / "less.yaml", ["evaluation.similarity.sts=null"])
    assert list(loaded.languages) == ["en"]
    assert (loaded.evaluation.retrieval, loaded.evaluation.similarity) == ({}, {})
