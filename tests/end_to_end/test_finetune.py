"""Fine-tuning as a process and within this one: every kind of task, both settings, scores, RDT, the page."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.end_to_end.test_merge import polydistill, write_recipe
from tests.finetuning import SMALL, recipe_values, task

from polydistill.config.load import parse_recipe
from polydistill.pipelines.finetune.jobs import Model
from polydistill.pipelines.run import run_recipe
from polydistill.tasks.scores import METRICS
from polydistill.tasks.splits import read_tasks

KINDS = ("ner", "pos", "classification", "pairs", "choice", "qa")


def results(run: Path) -> dict:
    return json.loads((run / "evaluation" / "finetune.json").read_text("utf-8"))


def test_every_kind_of_task_is_trained_tested_and_shown(tmp_path, teachers) -> None:
    tasks = {kind: task(tmp_path, kind) for kind in KINDS}
    tasks["pos"]["training"] = {"num_train_epochs": 8}
    # Tested on the dev set, a model scores the same as its best checkpoint there.
    tasks["pos"]["data"]["en"]["test"] = tasks["pos"]["data"]["en"]["dev"]
    said = []
    run = run_recipe(parse_recipe(recipe_values(tmp_path, {"one": teachers["en"]}, tasks)), show=said.append)
    evaluation = results(run)
    assert evaluation["done"] == evaluation["jobs"] == len(KINDS)
    for kind in KINDS:
        assert set(evaluation["scores"][kind]["one"]["en"]) == {*METRICS[kind], "items"}, kind
        folder = run / "jobs" / kind / "one" / "en-0"
        assert sorted(path.name for path in folder.iterdir()) == [
            "predictions",
            "scores.json",
            "stamp.json",
            "training.json",
        ]
        rows = [
            json.loads(line) for line in (folder / "predictions" / "en.jsonl").read_text("utf-8").splitlines()
        ]
        assert len(rows) == evaluation["scores"][kind]["one"]["en"]["items"] == (12 if kind == "qa" else 24)
    # A word's tag depends on the word alone: a model that fails to learn it is not trained at all.
    assert evaluation["scores"]["pos"]["one"]["en"]["accuracy"][0] > 0.9
    record = json.loads((run / "jobs" / "pos" / "one" / "en-0" / "training.json").read_text("utf-8"))
    measured = [entry["eval_score"] for entry in record["log"] if "eval_score" in entry]
    assert evaluation["scores"]["pos"]["one"]["en"]["accuracy"] == [record["score"]] == [max(measured)]
    page = (run / "report" / "index.html").read_text("utf-8")
    for wanted in (
        "entity F1",
        "exact match",
        "table 2, similar languages",
        "ChineseBERT",
        "with one seed they exclude variation between seeds",
    ):
        assert wanted in page, wanted
    assert any(line.startswith("6/6 ") for line in said)


def test_as_a_process_in_both_settings_and_a_second_run_does_nothing(
    tmp_path, multilingual_teacher, teachers
) -> None:
    tasks = {
        "tags": task(tmp_path, "pos", ("ru",)),
        "far": task(tmp_path, "ner", ("en", "ru"), setting="zero_shot", source="en"),
    }
    # A zero-shot target needs no training set. The source's dev set is split off its training set.
    tasks["far"]["data"]["ru"] = {"test": tasks["far"]["data"]["ru"]["test"]}
    del tasks["far"]["data"]["en"]["dev"]
    models = {"both": multilingual_teacher}
    values = recipe_values(
        tmp_path,
        models,
        tasks,
        num_seeds=2,
        training=SMALL | {"num_train_epochs": 3},
        teachers={"ru": "russian"},
        groups={"other": ["ru"]},
    )
    # A model of one language takes no part in training from another.
    values["models"]["russian"] = {"model": str(teachers["ru"]), "languages": ["ru"]}
    del values["recipe"]
    done = polydistill("finetune", write_recipe(tmp_path, values))
    assert done.returncode == 0, done.stderr
    for wanted in (
        "6/6 tags/russian from ru, seed 1: ru",
        "tags (in language): accuracy",
        "far (zero shot)",
        "report: ",
    ):
        assert wanted in done.stdout, wanted
    run = tmp_path / "run"
    evaluation = results(run)
    assert {
        target: len(cell["entity_f1"]) for target, cell in evaluation["scores"]["far"]["both"].items()
    } == {"en": 2, "ru": 2}
    # RDT of the means over seeds, positive where the student is better, in the language that has a teacher.
    mine, theirs = (
        np.mean(evaluation["scores"]["tags"][name]["ru"]["accuracy"]) for name in ("both", "russian")
    )
    cell = evaluation["rdt"]["tags"]["accuracy"]["both"]["ru"]
    assert cell["teacher"] == "russian"
    assert cell["value"] == pytest.approx(100 * (mine - theirs) / theirs)
    assert cell["low"] <= cell["value"] <= cell["high"]
    assert "russian" not in evaluation["rdt"]["tags"]["accuracy"]
    assert evaluation["rdt_average"]["both"]["value"] == pytest.approx(cell["value"])
    assert evaluation["rdt"]["far"]["entity_f1"] == {}
    page = (run / "report" / "index.html").read_text("utf-8")
    assert "positive is better" in page
    assert "<h2>Group “other”</h2>" in page
    assert f"from russian: {cell['value']:+.1f}" in page.split("Group “other”")[1].split("<h2>")[0]
    # In the heading of the language that has a teacher, and in no other.
    assert '<th class="n">ru<br><small>RDT from russian</small></th>' in page
    assert '<th class="n">en</th>' in page
    before = {path: path.stat().st_mtime_ns for path in run.glob("jobs/**/*")}
    said = []
    run_recipe(parse_recipe({"recipe": "finetune", **values}), show=said.append)
    assert {path: path.stat().st_mtime_ns for path in run.glob("jobs/**/*")} == before
    assert not any("step" in line for line in said)


def test_the_same_recipe_twice_gives_the_same_bytes_and_another_seed_others(tmp_path, teachers) -> None:
    made = []
    for name, seed in (("one", 0), ("two", 0), ("three", 7)):
        (tmp_path / name).mkdir()
        values = recipe_values(
            tmp_path / name, {"one": teachers["en"]}, {"pos": task(tmp_path, "pos")}, seed=seed
        )
        values["training"] |= {"num_train_epochs": 1, "learning_rate": 1e-3}
        run = run_recipe(parse_recipe(values), until="evaluate", show=lambda line: None)
        folder = run / "jobs" / "pos" / "one" / f"en-{seed}"
        made.append(
            [
                (folder / name).read_bytes()
                for name in ("scores.json", "training.json", "predictions/en.jsonl")
            ]
        )
    assert made[0] == made[1]
    assert made[0][1] != made[2][1]


def test_a_student_s_own_tokenizers_are_taken_unless_the_default_is_asked_for(tmp_path, teachers) -> None:
    """The model reads a language with tokenizer/<language>/, in training and in zero-shot tests."""
    student = tmp_path / "student"
    shutil.copytree(teachers["en"], student)
    (student / "tokenizer" / "ru").mkdir(parents=True)
    for path in teachers["en"].glob("tokenizer*.json"):
        text = path.read_text("utf-8")
        # Its own casing, so that the tokenizers differ.
        (student / "tokenizer" / "ru" / path.name).write_text(
            text.replace('"lowercase": true', '"lowercase": false'), "utf-8"
        )
    tasks = {"far": task(tmp_path, "pos", ("en", "ru"), setting="zero_shot", source="en")}
    for mode, same in (("own", False), ("default", True)):
        values = recipe_values(tmp_path, {}, tasks) | {
            "models": {"s": {"model": str(student), "tokenizer": mode}}
        }
        recipe = parse_recipe(values)
        model = Model("s", recipe.models["s"])
        assert (model.tokenizer("ru").fingerprint == model.tokenizer("en").fingerprint) is same
    assert read_tasks(recipe)["far"].labels("en") == ["NOUN", "PRON", "VERB"]
