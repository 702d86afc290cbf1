"""Names that clash with a run's own folders, files or tables: refused before any work, with a remedy."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from tests.faults.harness import run

from polydistill.artefacts import partial_folder
from polydistill.cli import main
from polydistill.config.load import parse_recipe
from polydistill.config.settings import Name
from polydistill.disk import replace_folder, write_text
from polydistill.errors import RecipeError
from polydistill.tools.compare import compare_runs

SOURCE = {"text": "a.txt"}
MERGE = {"name": "a", "teachers": {"x": "bert"}, "languages": {"de": SOURCE | {"teachers": ["x"]}}}
EXTRACT = {"recipe": "extract", "name": "a", "teacher": "m", "language": "de", "text": "a.txt"}
BALANCE = {"recipe": "balance", "name": "a", "languages": {"de": SOURCE}}
PRETRAIN = {"recipe": "pretrain", "name": "a", "languages": {"de": SOURCE}}
TAGGED = {"train": "a", "test": "b"}
PROBE = {"recipe": "probe", "name": "a", "models": {"m": "x"}, "tasks": {"pos": {"de": TAGGED}}}
FINETUNE = {
    "recipe": "finetune",
    "name": "a",
    "models": {"m": "x"},
    "tasks": {"ner": {"kind": "ner", "data": {"de": TAGGED}}},
}
GRID = {"recipe": "grid", "name": "a", "runs": {"one": {}}}
# Names that clash with nothing.
FREE = [
    "de",
    "de.2",
    "old",
    "partial",
    "zh-Hant",
    "v1.0",
    "tokenizer",
    "json",
    "a.partial.b",
    "Student",
    "kept",
]


def refusal(values: dict) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(values)
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (
            MERGE | {"teachers": {"x": "m", "student": "m"}},
            "teachers.student: the name is reserved for the student in",
        ),
        (
            MERGE | {"teachers": {"x": "m", "union": "m"}},
            "teachers.union: the name is reserved for the union tokenizer",
        ),
        (
            MERGE | {"teachers": {"x": "m", "counts": "m"}},
            "teachers.counts: the name is reserved for the number of masked",
        ),
        (
            MERGE | {"teachers": {"x": "m", "best": "m"}},
            "teachers.best: the name is reserved for a choice of teachers",
        ),
        (MERGE | {"teachers": {"x": "m", "y.old": "m"}}, "teachers.y.old 'y.old': names that end in .old"),
        (MERGE | {"name": "a.partial"}, "name 'a.partial': names that end in .partial are reserved"),
        (
            EXTRACT | {"language": "tokenizer.json"},
            "language 'tokenizer.json': names that end in .json are reserved",
        ),
        (
            EXTRACT | {"evaluation_texts": {"held_out": "a"}},
            "evaluation_texts.held_out 'held_out': the name held_out",
        ),
        (
            BALANCE | {"students": {"counts": {}}},
            "students.counts: the name is reserved for the number of masked tokens",
        ),
        (BALANCE | {"students": {"unigram": {}}}, "students.unigram: the name is reserved for the baseline"),
        (BALANCE | {"students": {"teacher": {}}}, "students.teacher: the name is reserved for the teachers"),
        (BALANCE | {"groups": {"all": ["de"]}}, "groups.all: the name is reserved for all languages"),
        (PROBE | {"groups": {"all": ["de"]}}, "groups.all: the name is reserved for all languages"),
        (PROBE | {"models": {"m.partial": "x"}}, "models.m.partial 'm.partial': names that end in .partial"),
        (
            FINETUNE | {"tasks": {"ner.old": {"kind": "ner", "data": {"de": TAGGED}}}},
            "tasks.ner.old 'ner.old'",
        ),
        (
            FINETUNE | {"tasks": {"ner": {"kind": "ner", "data": {"all": TAGGED}}}},
            "tasks.ner.data.all: the name is reserved",
        ),
        (
            GRID | {"runs": {"evaluation": {}}},
            "runs.evaluation: the name is reserved for a folder of the grid's own",
        ),
        (GRID | {"runs": {"words": {}}}, "runs.words: the name is reserved for a folder of the grid's own"),
        (GRID | {"runs": {"report": {}}}, "runs.report: the name is reserved for a folder of the grid's own"),
        (GRID | {"runs": {"recipe.yaml": {}}}, "runs.recipe.yaml 'recipe.yaml': names that end in .yaml"),
        (GRID | {"variants": {"x.tmp": {}}}, "variants.x.tmp 'x.tmp': names that end in .tmp"),
        (
            GRID | {"after": {"report": {}}},
            "after.report: the name is reserved for a folder of the grid's own",
        ),
    ],
)
def test_a_name_that_stands_for_something_else(values, wanted) -> None:
    message = refusal(values)
    assert wanted in message
    assert "choose another name" in message


@pytest.mark.parametrize("values", [MERGE, BALANCE, PRETRAIN])
@pytest.mark.parametrize(
    "language",
    [
        "de.old",
        "de.partial",
        "DE.Partial",
        "de.tmp",
        "de.lock",
        "tokenizer.json",
        "stamp.json",
        "checkpoints",
    ],
)
def test_languages_that_delete_each_other(values, language) -> None:
    """`de.old` is removed as the rest of an earlier `de`, and `de.partial` as a partial one."""
    languages = values["languages"]
    message = refusal(values | {"languages": languages | {language: languages["de"]}})
    assert f"languages.{language} {language!r}: " in message
    assert "choose another name" in message


@pytest.mark.parametrize("name", ["held_out", "train"])
@pytest.mark.parametrize("values", [MERGE, BALANCE, PRETRAIN])
def test_an_evaluation_text_in_the_place_of_the_held_out_one(values, name) -> None:
    language = values["languages"]["de"] | {"evaluation": {name: "b.txt"}}
    message = refusal(values | {"languages": {"de": language}})
    assert f"languages.de.evaluation.{name} {name!r}: the name {name} is reserved for" in message


@pytest.mark.parametrize("name", FREE)
def test_other_names_are_free(name) -> None:
    languages = {name: SOURCE | {"teachers": ["x"], "evaluation": {name: "b.txt"}}}
    assert name in parse_recipe(MERGE | {"languages": languages}).languages
    assert name in parse_recipe(BALANCE | {"students": {name: {}}}).students


def test_what_artefacts_are_written_beside_is_reserved(tmp_path, monkeypatch) -> None:
    """The reserved endings are those of unfinished files and folders."""
    seen = {partial_folder(tmp_path / "de").name}
    replace = Path.replace

    def note(self, target):
        seen.update({self.name, Path(target).name})
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", note)
    write_text(tmp_path / "file", "text")
    (tmp_path / "de").mkdir()
    (tmp_path / "de.partial").mkdir()
    replace_folder(tmp_path / "de.partial", tmp_path / "de")
    beside = seen - {"file", "de"}
    assert beside == {"de.partial", "de.old", "file.tmp"}
    for name in beside:
        with pytest.raises(ValidationError):
            TypeAdapter(Name).validate_python(name)


def test_no_file_of_a_run_can_be_a_name(recipe_values) -> None:
    """Languages are beside the files of `tokenizer/`, runs of a grid beside those of its folder."""
    folder = run(recipe_values, "score")
    files = {path.name for path in folder.rglob("*") if path.is_file()} - {".lock"}
    assert {"tokenizer.json", "stamp.json", "recipe.yaml", "run.log", "train.arrow"} <= files
    for name in files:
        with pytest.raises(ValidationError):
            TypeAdapter(Name).validate_python(name)


def test_a_run_refuses_before_it_makes_anything(recipe_values) -> None:
    """A teacher named `student` used to end in a traceback after all the work."""
    recipe_values["teachers"]["student"] = recipe_values["teachers"].pop("ru")
    recipe_values["languages"]["ru"]["teachers"] = ["student"]
    with pytest.raises(RecipeError, match=r"teachers\.student"):
        run(recipe_values)
    assert not Path(recipe_values["output"]).exists()


def test_from_the_command_line(tmp_path, monkeypatch, capsys) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(MERGE | {"output": str(tmp_path / "run")}), "utf-8")
    override = "languages.de.evaluation.held_out=x"
    monkeypatch.setattr(sys, "argv", ["polydistill", "run", str(recipe), "--set", override])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "languages.de.evaluation.held_out 'held_out': the name held_out is reserved for" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def evaluated(folder: Path, rank: float) -> Path:
    """A merge's folder as `compare` reads it, with the same rank everywhere for the student."""
    write_text(folder / "recipe.yaml", yaml.safe_dump(MERGE | {"recipe": "merge"}))
    place = "de/held_out/own/x"
    ranks = {"student": [rank] * 4, "x": [1.0] * 4, "counts": [2, 2]}
    (folder / "evaluation").mkdir()
    np.savez(folder / "evaluation" / "ranks.npz", **{f"{place}/{k}": np.array(v) for k, v in ranks.items()})
    return folder


@pytest.mark.parametrize("name", ["teacher", "text", "masked"])
def test_compared_runs_in_folders_of_a_columns_name(tmp_path, monkeypatch, capsys, name) -> None:
    """A run's figure used to appear in the teacher's place."""
    folders = [evaluated(tmp_path / "first", 4.0), evaluated(tmp_path / name, 2.0)]
    compare_runs(folders, Console(width=200))
    shown = capsys.readouterr().out
    assert "de, held_out: 4 tokens of x" in shown
    figures = [line.split()[:2] for line in shown.splitlines() if line.startswith("    ") and "." in line]
    assert [(Path(path).name, value) for path, value in figures] == [
        ("teacher", "1.000"),
        ("first", "0.250"),
        (name, "0.500"),
    ]
