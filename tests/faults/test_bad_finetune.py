"""Faults in fine-tuning: bad files are refused before training; kills in the middle of the queue."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tests.finetuning import SMALL, recipe_values, task

from polydistill.config.load import parse_recipe
from polydistill.errors import UserError
from polydistill.pipelines.plan import plan_recipe
from polydistill.pipelines.run import run_recipe


def refused(values: dict) -> str:
    with pytest.raises(UserError) as caught:
        run_recipe(parse_recipe(values), show=lambda line: None)
    assert not (Path(values["output"]) / "jobs").exists()
    return str(caught.value)


def planned(values: dict) -> tuple[str, str]:
    """(what `plan` prints, its conflicts)."""
    console = Console(record=True, width=300, file=io.StringIO())
    conflicts = plan_recipe(parse_recipe(values), (), console, full=True)
    return console.export_text(), "\n".join(f"{conflict.what}; {conflict.remedy}" for conflict in conflicts)


def append(path: str, text: str) -> None:
    with Path(path).open("a", encoding="utf-8") as handle:
        handle.write(text)


def test_labels_that_training_never_saw_are_named_and_counted(tmp_path, teachers) -> None:
    tags = task(tmp_path, "ner")
    append(tags["data"]["en"]["test"], "the\tB-MISC\nof\tB-MISC\nin\tB-X\n\n")
    values = recipe_values(tmp_path, {"one": teachers["en"]}, {"t": tags})
    said = refused(values)
    for wanted in (
        "tasks.t.data.en.test",
        "not in the training data of en: 'B-MISC' (2), 'B-X' (1)",
        "unseen_labels: count",
    ):
        assert wanted in said, said
    assert "'B-MISC' (2)" in planned(values)[1]
    tags["unseen_labels"] = "count"
    values["training"] |= {"max_steps": 1}
    lines = []
    run = run_recipe(parse_recipe(values), show=lines.append)
    assert any("count as wrong: 'B-MISC' (2), 'B-X' (1)" in line for line in lines)
    results = json.loads((run / "evaluation" / "finetune.json").read_text("utf-8"))
    assert results["scores"]["t"]["one"]["en"]["items"] == 25
    assert "count as wrong" in (run / "report" / "index.html").read_text("utf-8")
    rows = (run / "jobs/t/one/en-0/predictions/en.jsonl").read_text("utf-8").splitlines()
    assert json.loads(rows[-1])["gold"] == ["B-MISC", "B-MISC", "B-X"]


def test_answers_that_their_text_does_not_hold_are_counted_and_said(tmp_path, teachers) -> None:
    values = recipe_values(tmp_path, {"one": teachers["en"]}, {"q": task(tmp_path, "qa")})
    path = Path(values["tasks"]["q"]["data"]["en"]["train"])
    data = json.loads(path.read_text("utf-8"))
    answers = [paragraph["qas"][0]["answers"][0] for paragraph in data["data"][0]["paragraphs"][:2]]
    answers[0]["text"] = "nowhere"
    answers[1]["text"] = ""
    path.write_text(json.dumps(data), "utf-8")
    shown, conflicts = planned(values)
    for wanted in (
        "tasks.q.data.en.train: 1 of 12 questions have an answer that their text does not hold: they are "
        "left out",
        "1 of 12 questions have no answer: they are left out of training",
    ):
        assert wanted in conflicts, conflicts
    assert "1 jobs, in all about" in shown
    test = Path(values["tasks"]["q"]["data"]["en"]["test"])
    before = test.read_text("utf-8")
    blind = json.loads(before)
    for paragraph in blind["data"][0]["paragraphs"]:
        paragraph["qas"][0]["answers"] = [{"text": "", "answer_start": 0}]
    test.write_text(json.dumps(blind), "utf-8")
    assert "tasks.q.data.en.test: none of its questions has an answer, so nothing can be scored" in refused(
        values
    )
    # Training and test sets must not be the same.
    test.write_text(path.read_text("utf-8"), "utf-8")
    assert (
        "tasks.q.data.en.test: 12 of 12 questions are on texts that stand in en's training set too "
        "(overlap: drop leaves them out of it)" in planned(values)[1]
    )
    test.write_text(before, "utf-8")
    for paragraph in data["data"][0]["paragraphs"]:
        paragraph["qas"][0]["answers"][0]["text"] = "nowhere"
    path.write_text(json.dumps(data), "utf-8")
    assert "tasks.q.data.en.train: no question's answer occurs in its text" in refused(values)


def test_files_and_models_that_cannot_be_used(tmp_path, teachers) -> None:
    values = recipe_values(tmp_path, {"one": teachers["en"]}, {"t": task(tmp_path, "classification")})
    data = values["tasks"]["t"]["data"]["en"]
    train = Path(data["train"])
    before = train.read_text("utf-8")
    train.write_text("text\tlabel\n" + "the house\tA\n" * 20, "utf-8")
    assert "all examples have the label 'A'; give examples of at least two labels" in refused(values)
    train.write_text(before.replace("\tA\n", "\tA\tmore\n", 1), "utf-8")
    said = refused(values)
    assert "tasks.t.data.en.train" in said
    assert f"{train}, line " in said
    assert f"{train}, line " in planned(values)[1]
    train.write_text(before, "utf-8")
    del data["dev"]
    values["tasks"]["t"]["max_examples"] = 4
    assert "tasks.t.data.en.train: 4 examples are too few for a dev split" in refused(values)
    del values["tasks"]["t"]["max_examples"]
    assert "learning_rte" in refused(values | {"training": {"learning_rte": 1}})
    assert "models.one" in refused(values | {"models": {"one": str(tmp_path / "nowhere")}})
    assert "models.one" in planned(values | {"models": {"one": str(tmp_path / "nowhere")}})[1]


def test_tags_that_are_no_entities_and_teachers_that_are_not_trained(tmp_path, teachers) -> None:
    tags = task(tmp_path, "ner", ("en", "ru"))
    values = recipe_values(tmp_path, {"one": teachers["en"], "two": teachers["ru"]}, {"t": tags})
    test = Path(tags["data"]["ru"]["test"])
    before = test.read_text("utf-8")
    test.write_text(before.replace("\tO\n", "\tNOUN\n", 3), "utf-8")
    said = refused(values)
    assert "tasks.t.data.ru.test: has tags that are not entity tags: 'NOUN' (3)" in said
    assert "for parts of speech set kind: pos" in said
    test.write_text(before, "utf-8")
    only = {"model": str(teachers["ru"]), "languages": ["ru"]}
    with pytest.raises(UserError, match=r"teachers\.en 'two': models\.two\.languages lacks en"):
        parse_recipe(values | {"models": values["models"] | {"two": only}, "teachers": {"en": "two"}})
    tags |= {"setting": "zero_shot", "source": "en"}
    several = values | {"models": values["models"] | {"two": only}, "teachers": {"ru": "two"}}
    conflicts = planned(several)[1]
    assert "tasks.t.data.ru.test: its teacher two is not trained for it, so there is no RDT" in conflicts
    assert (
        "models.two: is not trained for t, which learns from en, and its `languages` lack that" in conflicts
    )
    assert "tasks.t.data.ru.train: is not read: models are trained on en alone" in conflicts
    shown, stand_in = planned(several | {"baseline": "one", "preset": "xtreme"})
    # Hyper-parameters as preset and recipe combine to.
    assert "learning_rate: 0.005" in shown
    assert "weight_decay: 0.0" in shown
    assert "its teacher two is not trained for it, so RDT is from one" in stand_in
    with pytest.raises(UserError, match=r"models\.two\.languages"):
        parse_recipe(values | {"models": {"two": only | {"languages": []}}})
    assert "models: none of them reads a language that a task is trained on" in refused(
        values | {"models": {"two": only}}
    )


def test_a_plan_says_sizes_labels_jobs_and_time(tmp_path, teachers) -> None:
    tasks = {
        "tags": task(tmp_path, "pos"),
        "far": task(tmp_path, "ner", ("en", "ru"), setting="zero_shot", source="en"),
    }
    del tasks["tags"]["data"]["en"]["dev"]
    values = recipe_values(tmp_path, {"one": teachers["en"]}, tasks, num_seeds=2, preset="eliquare")
    del values["training"]["warmup_steps"]
    shown, conflicts = planned(values)
    for wanted in ("3: NOUN, PRON, VERB", "4 jobs, in all about", "B-C, I-B", "22"):
        assert wanted in shown, wanted
    assert "500 steps of warm-up are too many for a training of 6" in conflicts
    assert not (tmp_path / "run").exists()


class Killed(BaseException):
    """Like a kill: nothing that runs afterwards cleans up."""


def scores(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.glob("jobs/**/*"))
        if path.is_file() and path.name != "stamp.json"
    }


def test_a_queue_that_was_killed_goes_on_where_it_was_to_the_same_bytes(tmp_path, teachers) -> None:
    """The first job is not repeated; the second resumes from its last whole checkpoint."""
    tasks = {"tags": task(tmp_path, "pos", ("en", "ru"))}
    training = SMALL | {"num_train_epochs": 4}

    def values(name: str) -> dict:
        (tmp_path / name).mkdir(exist_ok=True)
        return recipe_values(tmp_path / name, {"one": teachers["en"]}, tasks, training=training)

    calm = run_recipe(parse_recipe(values("calm")), until="evaluate", show=lambda line: None)

    def stop(line: str) -> None:
        if "ru-0: step 9/12" in line:
            raise Killed

    with pytest.raises(Killed):
        run_recipe(parse_recipe(values("killed")), until="evaluate", show=stop)
    run = tmp_path / "killed" / "run"
    partial = json.loads((run / "evaluation" / "finetune.json").read_text("utf-8"))
    assert (partial["done"], partial["jobs"]) == (1, 2)
    assert (run / "jobs/tags/one/ru-0.partial/checkpoints/checkpoint-6/complete.json").is_file()
    lines: list[str] = []
    assert run_recipe(parse_recipe(values("killed")), until="evaluate", show=lines.append) == run
    assert not any("en-0: step" in line for line in lines)
    assert any("ru-0: resuming at step 6" in line for line in lines)
    assert scores(run) == scores(calm)
    assert not list(run.rglob("checkpoint*"))


@pytest.mark.slow
def test_a_process_that_was_killed_leaves_what_another_goes_on_from(tmp_path, teachers) -> None:
    values = recipe_values(tmp_path, {"one": teachers["en"]}, {"tags": task(tmp_path, "pos")})
    values["training"] |= {"num_train_epochs": 200}
    values["patience"] = 0
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values), "utf-8")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "polydistill", "finetune", str(tmp_path / "recipe.yaml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while (
            not list(run.glob("jobs/**/complete.json"))
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if "resuming at step" in line:
            raise Killed

    with pytest.raises(Killed):
        run_recipe(parse_recipe(values), show=stop)


def test_what_a_plan_says_of_tokenizers_and_of_dev_sets(tmp_path, teachers) -> None:
    tags = task(tmp_path, "pos")
    data = tags["data"]["en"]
    Path(tmp_path / "dev.conllu").write_text(
        Path(data["test"]).read_text("utf-8").replace("NOUN", "NEW"), "utf-8"
    )
    data["dev"] = str(tmp_path / "dev.conllu")
    model = tmp_path / "student"
    shutil.copytree(teachers["en"], model)
    shutil.copytree(teachers["en"], model / "tokenizer" / "de")
    assert (
        "models.one: reads en by the tokenizer of all its languages: it has own ones for de"
        in planned(recipe_values(tmp_path, {"one": str(model)}, {"t": tags}))[1]
    )
    strange = tmp_path / "strange.conllu"
    strange.write_text(
        re.sub(r"(?m)^(\d+)\t\S+\t", "\\1\t\u1208\t", Path(data["test"]).read_text("utf-8")), "utf-8"
    )
    conflicts = planned(
        recipe_values(
            tmp_path, {"one": teachers["en"]}, {"t": tags | {"data": {"en": data | {"test": str(strange)}}}}
        )
    )[1]
    assert re.search(r"models\.one: reads [5-9]\d % of the tokens of en as unknown \(t\)", conflicts), (
        conflicts
    )
    assert "tasks.t.data.en.dev: labels that training on en never saw count as wrong: 'NEW'" in conflicts


def test_a_recipe_that_does_not_say_its_kind_and_a_header_that_is_there_twice(tmp_path, teachers) -> None:
    values = recipe_values(tmp_path, {"one": teachers["en"]}, {"t": task(tmp_path, "classification")})
    with pytest.raises(UserError) as caught:
        parse_recipe({key: value for key, value in values.items() if key != "recipe"})
    assert "its keys are those of finetune; add `recipe: finetune`" in str(caught.value)
    columns = values["tasks"]["t"].get("columns", {})
    values["tasks"]["t"]["columns"] = columns | {"header": ["text", "label"]}
    assert "line 1" in refused(values)
    assert "repeats `columns.header`" in refused(values)
