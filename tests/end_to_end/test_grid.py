"""A grid of recipes: its runs, what they share, its table, and what it refuses."""

import json
from pathlib import Path

import pytest
import yaml
from tests.end_to_end.test_merge import polydistill, write_recipe
from tests.finetuning import recipe_values as tuning_values
from tests.finetuning import task

from polydistill.config.grid import GridRecipe
from polydistill.config.load import load_recipe, parse_recipe
from polydistill.disk import write_json
from polydistill.errors import RecipeError, UserError
from polydistill.evaluation.convergence import loss_curve
from polydistill.pipelines.grid.children import awaited, children_of, places_of
from polydistill.pipelines.grid.pipeline import sooner
from polydistill.pipelines.grid.rows import grid_rows
from polydistill.pipelines.kinds import PIPELINES
from polydistill.pipelines.pipeline import Command
from polydistill.pipelines.run import run_recipe
from polydistill.reports.grid_tables import grid_lines

MERGE = {"teachers": {"a": "x"}, "languages": {"ko": {"text": "a.txt", "teachers": "a"}}}


def check_grid(recipe: GridRecipe) -> None:
    PIPELINES["grid"].check(recipe, Command(PIPELINES))


def grid(**values) -> GridRecipe:
    recipe = parse_recipe({"recipe": "grid", "name": "g", "base": MERGE, "runs": {"one": {}}} | values)
    assert isinstance(recipe, GridRecipe)
    return recipe


def test_runs_and_variants_multiply_and_later_changes_win() -> None:
    recipe = grid(
        base=MERGE | {"training": {"max_steps": 5, "learning_rate": 1e-3}},
        runs={"soft": None, "gold": {"distillation": {"labels": "gold"}, "training": {"max_steps": 7}}},
        variants={"short": {"training": {"max_steps": 2}}, "long": None},
        reuse=["other"],
    )
    children = children_of(recipe)
    assert list(children) == ["soft-short", "soft-long", "gold-short", "gold-long"]
    assert [child.training["max_steps"] for child in children.values()] == [2, 5, 2, 7]
    assert {child.training["learning_rate"] for child in children.values()} == {1e-3}
    assert [child.distillation.labels for child in children.values()] == ["both", "both", "gold", "gold"]
    last = children["gold-long"]
    assert (last.name, last.output) == ("gold-long", "runs/g/gold-long")
    assert last.reuse == ["runs/g/soft-short", "runs/g/soft-long", "runs/g/gold-short", "other"]


def test_every_run_is_made_with_every_seed_and_reads_runs_of_its_own_seed() -> None:
    tasks = {"t": {"kind": "pos", "data": {"ko": {"train": "a.conllu", "test": "b.conllu"}}}}
    tuned = {
        "recipe": "finetune",
        "num_seeds": 3,
        "models": {"one": "$grid/one/student/final", "other": "$grid/two-seed9/x", "far": "runs/far"},
        "tasks": tasks,
    }
    later = {"extends": None, "teachers": {"a": "$grid/one/student/final"}}
    recipe = grid(
        runs={"one": {}, "two": {"teachers": later["teachers"]}}, seeds=[0, 4], after={"tasks": tuned}
    )
    # An unknown folder of the grid is refused by its own name, whatever the seed.
    with pytest.raises(RecipeError, match="two-seed9"):
        children_of(recipe)
    del tuned["models"]["other"]
    recipe = grid(
        runs={"one": {}, "two": {"teachers": later["teachers"]}}, seeds=[0, 4], after={"tasks": tuned}
    )
    children = children_of(recipe)
    # All runs of a seed, then those of the next: an early table is whole.
    assert {name: child.seed for name, child in children.items()} == {
        "one-seed0": 0,
        "two-seed0": 0,
        "tasks-seed0": 0,
        "one-seed4": 4,
        "two-seed4": 4,
        # Three seeds each, so that no training serves two seeds: 0 1 2, and 12 13 14.
        "tasks-seed4": 12,
    }
    assert children["two-seed4"].teachers["a"].model == "runs/g/one-seed4/student/final"
    assert [model.model for model in children["tasks-seed4"].models.values()] == [
        "runs/g/one-seed4/student/final",
        "runs/far",
    ]
    assert children["one-seed4"].reuse == ["runs/g/one-seed0", "runs/g/two-seed0", "runs/g/tasks-seed0"]
    assert list(places_of(recipe).values())[:2] == [("one", 0), ("two", 0)]
    # Without seeds nothing changes.
    assert list(children_of(grid())) == ["one"]
    assert places_of(grid()) == {"one": ("one", None)}


def test_runs_may_extend_files_and_be_of_other_kinds(tmp_path) -> None:
    (tmp_path / "merge.yaml").write_text(
        yaml.safe_dump(MERGE | {"name": "m", "output": "elsewhere"}), "utf-8"
    )
    (tmp_path / "alone.yaml").write_text(
        yaml.safe_dump({"recipe": "pretrain", "name": "p", "languages": {"ko": {"text": "a.txt"}}}), "utf-8"
    )
    (tmp_path / "grid.yaml").write_text(
        "recipe: grid\nname: g\nruns: {m: {extends: merge.yaml, seed: 3}, p: {extends: alone.yaml}}\n",
        "utf-8",
    )
    children = children_of(load_recipe(tmp_path / "grid.yaml"))
    assert {name: child.recipe for name, child in children.items()} == {"m": "merge", "p": "pretrain"}
    assert (children["m"].seed, children["m"].output) == (3, "runs/g/m")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"runs": {}}, ["runs"]),
        ({"runs": {"a": {"output": "x"}}}, ["runs.a.output 'x'", "the grid names its runs"]),
        ({"variants": {"a": {"extends": "x"}}}, ["variants.a.extends", "only base, runs and after"]),
        ({"after": {"one": {}}}, ["after.one: a run has this name already"]),
        ({"seeds": [0, 1, 0]}, ["seeds[2] 0: is named twice; leave one out"]),
        ({"seeds": [-1]}, ["seeds[0]"]),
        ({"seeds": [0], "runs": {"one": {"seed": 5}}}, ["runs.one.seed 5: the grid's `seeds` set it"]),
        ({"seeds": [0], "base": MERGE | {"seed": 5}}, ["base.seed 5"]),
        ({"baseline": "two"}, ["baseline 'two': no run of that name; the grid makes one"]),
        ({"equivalence_margin": -1}, ["equivalence_margin -1"]),
        ({"runs": {"a": {}, "a-b": {}}, "variants": {"b-c": {}, "c": {}}}, ["two runs get the same name"]),
        ({"after": {"x": {"recipe": "probe"}}}, ["after.x", "models"]),
        ({"runs": {"a": {"trainin": {}}}}, ["runs.a", "trainin", "did you mean 'training'"]),
        (
            {"runs": {"a": {"recipe": "grid", "runs": {"b": {}}}}, "base": {}},
            ["runs.a.recipe", "a grid cannot hold a grid"],
        ),
    ],
)
def test_what_is_refused(change, wanted) -> None:
    with pytest.raises(RecipeError) as caught:
        children_of(grid(**change))
    for part in wanted:
        assert part in str(caught.value), str(caught.value)


def test_a_grid_shares_stores_and_ends_in_a_table(tmp_path, recipe_values) -> None:
    base = {key: value for key, value in recipe_values.items() if key not in ("name", "output")}
    models = {name: tmp_path / "grid" / name / "student" / "final" for name in ("both", "gold")}
    tuned = tuning_values(tmp_path, models, {"tags": task(tmp_path, "pos")}, baseline="gold")
    values = {
        "recipe": "grid",
        "name": "labels",
        "output": str(tmp_path / "grid"),
        "base": base,
        "runs": {"both": {}, "gold": {"distillation": {"labels": "gold"}}},
        "after": {"tasks": {key: value for key, value in tuned.items() if key not in ("name", "output")}},
    }
    recipe = write_recipe(tmp_path, values)
    planned = polydistill("plan", recipe)
    assert planned.returncode == 0, planned.stderr
    assert "can be planned once these exist" in planned.stdout
    # A model that an earlier run will make is no conflict.
    assert "both: 1 conflict\n" in planned.stdout
    assert "tasks: no conflicts\n" in planned.stdout
    done = polydistill("run", recipe)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "grid"
    # Scored once, for the first run.
    assert (folder / "both" / "store").is_dir()
    assert not (folder / "gold" / "store").exists()
    logs = {run: (folder / run / "student" / "log.json").read_text("utf-8") for run in ("both", "gold")}
    assert ("teacher_weight" in logs["both"], "teacher_weight" in logs["gold"]) == (True, False)
    table = json.loads((folder / "evaluation" / "grid.json").read_text("utf-8"))
    assert table["runs"] == ["both", "gold", "tasks"]
    tags = {
        row["model"]: row for row in table["rows"] if row["run"] == "tasks" and row["measure"] == "accuracy"
    }
    assert {*tags} == {"both", "gold"}
    assert tags["both"]["place"] == "tags, en"
    assert (folder / "tasks" / "evaluation" / "finetune.json").is_file()
    own = json.loads((folder / "gold" / "evaluation" / "mlm.json").read_text("utf-8"))["languages"]["ru"]
    mine = [row["value"] for row in table["rows"] if row["run"] == "gold" and row["place"].startswith("ru")]
    assert mine == [row["mrr"] for row in own]
    assert table["losses"]["gold"]["steps"] == [
        entry["step"] for entry in json.loads(logs["gold"])["log"] if "mlm_loss" in entry
    ]
    assert {(row["run"], row["other"]) for row in table["sooner"]} == {("both", "gold"), ("gold", "both")}
    for wanted in ("both", "gold", "MRR on held out text", "gold, union tokenizer", "teacher", "RDT, %"):
        assert wanted in done.stdout, wanted
    page = (folder / "report" / "index.html").read_text("utf-8")
    assert '<a href="../gold/report/index.html">' in page
    assert "<svg" in page
    assert "first reaches the final loss of another (column)" in page
    # The fine-tuning calls a run's student by the run's name: its figures go in that run's column, in one
    # row.
    row = page.split("<td>tasks: tags, en</td><td>accuracy</td><td>student</td><td></td>")[1].split("</tr>")[
        0
    ]
    cells = [cell for cell in row.split("<td") if cell.strip()]
    assert [
        f"{tags[run]['value']:.3f}" in cell for run, cell in zip(("both", "gold"), cells, strict=True)
    ] == [True, True]
    students = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = polydistill("run", recipe)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in students} == students
    assert Path(folder / "both" / "student" / "final" / "model.safetensors") in students


def test_only_losses_on_the_same_text_and_pieces_are_compared(tmp_path) -> None:
    def log(run: str, losses: list[float], tokenizer: str) -> None:
        entries = [{"step": 5 * (n + 1), "mlm_loss": loss} for n, loss in enumerate(losses)]
        write_json(tmp_path / run / "student" / "log.json", {"log": entries})
        (tmp_path / run / "student" / "final").mkdir()
        (tmp_path / run / "student" / "final" / "tokenizer.json").write_text(tokenizer, "utf-8")

    recipe = grid(
        output=str(tmp_path),
        runs={
            "one": {},
            "two": {},
            "other-pieces": {},
            "other-text": {"languages": {"ko": {"text": "b.txt", "teachers": "a"}}},
            "other-masks": {"masking": {"probability": 0.2}},
            "none-yet": {},
        },
    )
    for run in ("one", "other-text", "other-masks"):
        log(run, [4, 2], "x")
    log("two", [3, 1], "x")
    log("other-pieces", [4, 2], "y")
    curves = {run: loss_curve(tmp_path / run) for run in children_of(recipe)}
    assert curves["none-yet"] is None
    known = {run: curve for run, curve in curves.items() if curve}
    assert sooner(children_of(recipe), known, places_of(recipe)) == [
        {"run": "one", "other": "two", "step": None, "factor": None},
        {"run": "two", "other": "one", "step": 10, "factor": 1},
    ]


def test_a_plan_waits_for_models_that_earlier_runs_make(tmp_path) -> None:
    text = {"text": "a.txt"}
    balance = {
        "recipe": "balance",
        "languages": {"ko": text | {"teacher": "runs/g/one/student/final"}, "de": text},
        "tokenizer": {"vocabulary": "x"},
    }
    extract = {"recipe": "extract", "teacher": "runs/g/one/student/final", "language": "ko", "text": "a.txt"}
    merge = MERGE | {"teachers": {"a": "runs/g/one/student/final"}}
    far = MERGE | {"teachers": {"a": "elsewhere/one/student/final"}}
    children = children_of(
        grid(base={}, runs={"one": MERGE, "b": balance, "e": extract, "m": merge, "f": far})
    )
    earlier = {"one": children["one"]}
    assert {name: awaited(child, earlier) for name, child in children.items()} == {
        "one": [],
        "f": [],
        **{key: ["runs/g/one/student/final"] for key in ("b", "e", "m")},
    }


def test_a_model_that_no_earlier_run_makes_is_refused_and_a_path_may_count_from_the_grid() -> None:
    tasks = {"t": {"kind": "pos", "data": {"ko": {"train": "a.conllu", "test": "b.conllu"}}}}
    for model, wanted in (
        (
            "$grid/two/student/final",
            "runs/g/two/student/final': no earlier run of this grid makes this folder",
        ),
        ("$grid/one/student/fnal", "earlier runs make these models: runs/g/one/student/final"),
        ("runs/g/one", "no earlier run of this grid"),
    ):
        with pytest.raises(RecipeError) as caught:
            children_of(grid(after={"tasks": {"recipe": "finetune", "models": {"m": model}, "tasks": tasks}}))
        assert wanted in str(caught.value), str(caught.value)
        assert caught.value.field == "after.tasks"
    good = {
        "recipe": "finetune",
        "models": {"m": "$grid/one/student/final", "o": "runs/other"},
        "tasks": tasks,
    }
    for output in ("", "elsewhere"):
        child = children_of(grid(output=output, after={"tasks": good}))["tasks"]
        assert [source.model for source in child.models.values()] == [
            f"{output or 'runs/g'}/one/student/final",
            "runs/other",
        ]
    # A grid with another output must not read what it made earlier in its default folder.
    stale = good | {"models": {"m": "runs/g/one/student/final"}}
    assert "tasks" in children_of(grid(after={"tasks": stale}))
    with pytest.raises(RecipeError, match=r"this grid's folder is elsewhere") as caught:
        children_of(grid(output="elsewhere", after={"tasks": stale}))
    assert caught.value.remedy == "write $grid/one/student/final"


def test_what_any_run_would_be_refused_for_is_known_before_the_first(tmp_path, texts) -> None:
    text = {"ko": {"text": str(texts["en"]), "teachers": "a"}}
    good = {"teachers": {"a": "x"}, "languages": text}
    tasks = {"t": {"kind": "pos", "data": {"ko": {"train": "none.conllu", "test": "none.conllu"}}}}
    tuned = {"recipe": "finetune", "models": {"m": "$grid/one/student/final"}, "tasks": tasks}
    check_grid(grid(base=good))
    with pytest.raises(UserError, match=r"two: training\.learning_rte"):
        run_recipe(
            grid(
                base=good,
                output=str(tmp_path / "g"),
                runs={"one": {}, "two": {"training": {"learning_rte": 1}}},
            ),
            show=lambda line: None,
        )
    assert not (tmp_path / "g" / "one").exists()
    for values, wanted in (
        ({"runs": {"one": {}, "two": {"training": {"learning_rte": 1}}}}, "two: training.learning_rte"),
        ({"runs": {"one": {}, "two": {"languages": {"ko": {"text": "none.txt"}}}}}, "two: languages.ko.text"),
        ({"after": {"tasks": tuned}}, "tasks: tasks.t.data.ko.train"),
        ({"after": {"tasks": tuned | {"training": {"optim": "adamx"}}}}, "tasks: training"),
    ):
        with pytest.raises(UserError) as caught:
            check_grid(grid(base=good, **values))
        assert str(caught.value).startswith(wanted), str(caught.value)


def test_lines_are_named_as_far_as_they_have_to_be() -> None:
    def row(run: str, model: str, tokenizer: str, teacher: str | None, value: float) -> dict:
        return {
            "run": run,
            "language": "en",
            "model": model,
            "tokenizer": tokenizer,
            "teacher": teacher,
            "value": value,
        }

    rows = [
        row("a", "student", "own", "x", 0.1),
        row("a", "student", "own", "y", 0.2),
        row("a", "x", "own", "x", 0.3),
        row("a", "student", "union", None, 0.4),
        row("b", "student", "own", "x", 0.5),
        row("b", "x", "own", "x", 0.3),
        row("b", "ours", "own", "b", 0.6),
    ]
    assert {line: cells["en"] for line, cells in grid_lines(rows).items() if cells} == {
        "a": 0.1,
        "a, y's tokenizer": 0.2,
        "teacher": 0.3,
        "a, union tokenizer": 0.4,
        "b": 0.5,
        "b: ours": 0.6,
    }


def test_rows_of_probes_and_of_fine_tuning(tmp_path) -> None:
    cell = {"mean": 0.5, "deviation": 0.1}
    probes = {"pos": {"accuracy": {"m": {"all": {"in_language": cell, "zero_shot": {}}}}}}
    write_json(tmp_path / "evaluation" / "probes.json", {"summary": probes})
    tuned = {"ner": {"entity_f1": {"m": {"ko": cell | {"mean": 0.7, "low": 0.6, "high": 0.8}}}}}
    write_json(tmp_path / "evaluation" / "finetune.json", {"summary": tuned})
    rows = [(row["place"], row["model"], row["measure"], row["value"]) for row in grid_rows(tmp_path, "a")]
    assert rows == [("pos, all, in language", "m", "accuracy", 0.5), ("ner, ko", "m", "entity f1", 0.7)]
    # An unfinished queue has no summary yet.
    write_json(tmp_path / "evaluation" / "finetune.json", {"done": 1, "jobs": 2})
    assert len(grid_rows(tmp_path, "a")) == 1
