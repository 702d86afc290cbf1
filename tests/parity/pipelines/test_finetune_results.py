"""Scores and RDT of a whole queue, from predictions written by hand."""

import json

import numpy as np
import pytest
from tests.finetuning import recipe_values, task

from polydistill.config.load import parse_recipe
from polydistill.pipelines.finetune.jobs import all_jobs
from polydistill.pipelines.finetune.results import Results
from polydistill.reports.finetune_page import OWN_TEACHERS, joined
from polydistill.tasks.splits import read_tasks

ITEMS = 200


def summary(
    tmp_path, folders, accuracy: dict[str, dict[str, tuple[float, ...]]], *, tasks=None, second=None, **more
) -> dict:
    """A queue's results. model → language → accuracy with each seed; wrong predictions are spread over the
    items.

    tasks   by default one, `topic`, whose languages all have one test set
    second  accuracies of a second task, `also`, with the same files
    """
    tmp_path.mkdir(exist_ok=True)
    languages = tuple(next(iter(accuracy.values())))
    if tasks is None:
        tasks = {"topic": task(tmp_path, "classification", languages[:1])}
        for language in languages[1:]:
            tasks["topic"]["data"][language] = tasks["topic"]["data"][languages[0]]
    if second is not None:
        tasks["also"] = tasks["topic"]
    values = recipe_values(
        tmp_path,
        {
            name: {
                "model": str(folders["en"]),
                "languages": [language for language in languages if language in cells],
            }
            for name, cells in accuracy.items()
        },
        tasks,
        num_seeds=len(accuracy[next(iter(accuracy))][languages[0]]),
        bootstrap_samples=2000,
        **more,
    )
    recipe = parse_recipe(values)
    jobs = all_jobs(recipe, read_tasks(recipe))
    results = Results(recipe, len(jobs), [])
    for job in jobs:
        folder = tmp_path / "written" / job.place
        (folder / "predictions").mkdir(parents=True)
        scores = {}
        for language in job.targets:
            wanted = accuracy if job.texts.name == "topic" else second
            right = round(ITEMS * wanted[job.model.name][language][job.seed])
            order = np.random.default_rng(0).permutation(ITEMS)
            rows = [{"gold": "A", "predicted": "A" if place < right else "B"} for place in order]
            (folder / "predictions" / f"{language}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in rows), "utf-8"
            )
            scores[language] = {"items": ITEMS, **job.scores(rows, language)}
        (folder / "scores.json").write_text(json.dumps({"scores": scores}), "utf-8")
        results.add(job, folder)
    results.write(tmp_path, summarised=True)
    return json.loads((tmp_path / "evaluation" / "finetune.json").read_text("utf-8"))


def test_rdt_is_negative_where_the_student_is_worse_and_averaged_over_languages(tmp_path, teachers) -> None:
    evaluation = summary(
        tmp_path,
        teachers,
        {"student": {"en": (0.6, 0.6), "ru": (0.9, 0.9)}, "teacher": {"en": (0.8, 0.8), "ru": (0.75, 0.75)}},
        teachers={"en": "teacher", "ru": "teacher"},
    )
    rdt = evaluation["rdt"]["topic"]["accuracy"]["student"]
    assert rdt["en"]["value"] == pytest.approx(-25)
    assert rdt["ru"]["value"] == pytest.approx(20)
    assert rdt["all"]["value"] == pytest.approx(-2.5)
    assert rdt["all"]["languages"] == 2
    assert rdt["en"]["high"] < 0 < rdt["ru"]["low"]
    assert (rdt["en"]["verdict"], rdt["ru"]["verdict"]) == ("below", "within")
    assert evaluation["rdt_average"]["student"] | {"low": 0, "high": 0, "verdict": "", "judgement": ""} == {
        "value": pytest.approx(-2.5),
        "low": 0,
        "high": 0,
        "verdict": "",
        "judgement": "",
        "tasks": 1,
    }
    assert "teacher" not in evaluation["rdt"]["topic"]["accuracy"]
    cell = evaluation["summary"]["topic"]["accuracy"]["student"]["en"]
    assert (cell["mean"], cell["deviation"], cell["seeds"], cell["items"]) == (0.6, 0, 2, ITEMS)
    # Without noise from seeds it is the standard error of a share, twice.
    assert cell["high"] - cell["low"] == pytest.approx(2 * 1.96 * np.sqrt(0.6 * 0.4 / ITEMS), rel=0.1)


def test_seeds_that_differ_widen_every_interval(tmp_path, teachers) -> None:
    """Paired items alone would settle it: the better model's errors are errors of the other too."""
    scores = {"student": {"en": (0.70, 0.80)}, "teacher": {"en": (0.78, 0.80)}}
    loud = summary(tmp_path / "loud", teachers, scores, baseline="teacher")
    calm = {"student": {"en": (0.75, 0.75)}, "teacher": {"en": (0.79, 0.79)}}
    quiet = summary(tmp_path / "calm", teachers, calm, baseline="teacher")
    cells = [run["rdt"]["topic"]["accuracy"]["student"]["en"] for run in (loud, quiet)]
    assert cells[0]["value"] == pytest.approx(cells[1]["value"]) == pytest.approx(100 * (0.75 / 0.79 - 1))
    assert cells[1]["high"] < 0
    assert cells[0]["low"] < cells[1]["low"]
    assert cells[0]["high"] > 0
    assert cells[0]["verdict"] == "open"


@pytest.mark.parametrize("base", [0.0, 0.04])
def test_a_teacher_that_learned_nothing_leaves_its_language_out(tmp_path, teachers, base) -> None:
    """A student's 0.0 beside a teacher's 0.003 is no RDT of -100 %."""
    evaluation = summary(
        tmp_path,
        teachers,
        {"student": {"en": (0.6,), "ru": (0.0,)}, "teacher": {"en": (0.5,), "ru": (base,)}},
        baseline="teacher",
    )
    rdt = evaluation["rdt"]["topic"]["accuracy"]["student"]
    assert rdt["ru"] == {"teacher": "teacher", "value": None, "base": base}
    assert (rdt["all"]["value"], rdt["all"]["languages"]) == (pytest.approx(20), 1)


def test_teachers_of_one_language_each_stand_in_one_row() -> None:
    cells = {name: {"mean": value} for name, value in (("a", 0.1), ("b", 0.2), ("c", 0.3))}
    models = {"s": {"ko": cells["a"], "zh": cells["b"]}, "x": {"ko": cells["c"]}, "y": {"zh": cells["a"]}}
    assert joined(models, {"ko": "x", "zh": "y"}) == {
        "s": models["s"],
        OWN_TEACHERS: {"ko": cells["c"], "zh": cells["a"]},
    }
    # A single one keeps its name, and so does one that is also tested on another language.
    for teachers in ({"ko": "x"}, {"ko": "x", "zh": "s"}, {}):
        assert joined(models, teachers) == models
    # A teacher of two languages has a row of its own.
    both = {
        "s": {"ko": cells["a"]},
        "x": {"ko": cells["c"]},
        "y": {"zh": cells["a"]},
        "z": {"de": cells["b"], "it": cells["c"]},
    }
    kept = joined(both, {"ko": "x", "zh": "y", "de": "z", "it": "z"})
    assert kept == {"s": both["s"], "z": both["z"], OWN_TEACHERS: {"ko": cells["c"], "zh": cells["a"]}}
