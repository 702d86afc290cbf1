"""A balance run, as a process and within this one: teachers, students, evaluation, probes, report."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from tests.end_to_end.test_merge import polydistill, write_recipe
from transformers import AutoModelForMaskedLM, AutoTokenizer

from polydistill.config.load import parse_recipe
from polydistill.corpora.examples import Examples
from polydistill.errors import RunFolderError
from polydistill.pipelines.run import run_recipe
from polydistill.tools.compare import compare_runs


def balance_values(texts: dict[str, Path], output: Path) -> dict:
    return {
        "recipe": "balance",
        "name": "small",
        "output": str(output),
        "languages": {
            "en": {"text": str(texts["en"]), "max_characters": 50_000},
            "ru": {"text": str(texts["ru"]), "max_characters": 20_000},
        },
        "groups": {"low": ["ru"], "high": ["en"]},
        "corpora": {"max_length": 32, "block_lines": 16, "held_out_share": 0.1},
        "tokenizer": {"size": 500},
        "model": {
            "model_type": "bert",
            "config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 64,
            },
        },
        "teachers": {"epochs": 1, "evaluations": 4, "patience": 1},
        "training": {
            "max_steps": 12,
            "per_device_train_batch_size": 16,
            "learning_rate": 5e-3,
            "bf16": False,
            "logging_steps": 4,
            "report_to": [],
        },
        "evaluation": {"max_examples": 30, "precision": "float32"},
    }


def treebank(path: Path, words: list[str]) -> str:
    rows = [f"{n}\t{word}\t_\t{'NOUN' if n % 2 else 'VERB'}" + "\t_" * 6 for n, word in enumerate(words, 1)]
    path.write_text(("\n".join(rows) + "\n\n") * 4, "utf-8")
    return str(path)


def characters(run: Path, student: str) -> dict[str, int]:
    return json.loads((run / "students" / student / "log.json").read_text("utf-8"))["characters"]


def test_a_run_trains_teachers_and_the_papers_three_students_and_a_second_run_does_nothing(
    tmp_path, texts
) -> None:
    values = balance_values(texts, tmp_path / "run")
    pos = {
        "en": {
            split: treebank(tmp_path / f"en-{split}.conllu", ["the", "house", "stands"])
            for split in ("train", "test")
        },
        "ru": {
            split: treebank(tmp_path / f"ru-{split}.conllu", ["дом", "стоит", "там"])
            for split in ("train", "test")
        },
    }
    values["probe"] = {
        "tasks": {"pos": pos},
        "probing": {"num_seeds": 2, "epochs": 2, "precision": "float32"},
    }
    recipe = write_recipe(tmp_path, values)
    done = polydistill("run", recipe)
    assert done.returncode == 0, done.stderr
    for wanted in ("teachers/en: ", "students/HL-balanced: ", "D", "pos/ours: from en", "held-out loss "):
        assert wanted in done.stdout, wanted
    run = tmp_path / "run"
    for model in ("teachers/ru", "students/ours", "students/HL", "students/HL-balanced"):
        loaded = AutoModelForMaskedLM.from_pretrained(run / model / "final")
        assert loaded.config.vocab_size == len(AutoTokenizer.from_pretrained(run / model / "final"))
    ours, everything = characters(run, "ours"), characters(run, "HL")
    assert 19_000 < ours["ru"] <= 20_000
    assert ours["ru"] - 300 < ours["en"] <= ours["ru"]
    assert everything["ru"] == ours["ru"]
    assert 49_000 < everything["en"] <= 50_000
    results = json.loads((run / "evaluation" / "mlm.json").read_text("utf-8"))
    rows = {language: {row["model"]: row for row in rows} for language, rows in results["languages"].items()}
    assert list(rows["ru"]) == ["teacher", "ours", "HL", "HL-balanced"]
    assert len({row["num_masked"] for row in rows["ru"].values()}) == 1
    difference = results["summary"]["D"]["HL"]
    each = {name: rows[name]["HL"]["mrr"] - rows[name]["teacher"]["mrr"] for name in ("en", "ru")}
    assert difference["low"]["value"] == pytest.approx(each["ru"], abs=1e-6)
    assert difference["all"]["value"] == pytest.approx((each["en"] + each["ru"]) / 2, abs=1e-6)
    assert difference["all"]["low"] < difference["all"]["value"] < difference["all"]["high"]
    for model, language, row in (("students/ours", "ru", "ours"), ("teachers/ru", "ru", "teacher")):
        card = (run / model / "final" / "README.md").read_text("utf-8")
        assert f"{rows[language][row]['mrr']:.3f}" in card, model
    page = (run / "report" / "index.html").read_text("utf-8")
    for wanted in ("<svg", "D over all languages", "HL-balanced", "Parts of speech"):
        assert wanted in page, wanted
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    assert len(before) == 5
    again = polydistill("evaluate", recipe, "--probe", "pos")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before
    refused = polydistill("evaluate", recipe, "--probe", "ner")
    assert refused.returncode == 2
    assert "probe.tasks have pos" in refused.stderr
    compared = polydistill("compare", str(run), str(run))
    assert compared.returncode == 0, compared.stderr
    probes = json.loads((run / "evaluation" / "probes.json").read_text("utf-8"))["summary"]["pos"]["accuracy"]
    lines = [row for row in compared.stdout.splitlines() if row.strip().startswith("HL ")]
    # D, the difference from the first student, the probe.
    assert len(lines) == 3
    for group in ("all", "low", "high"):
        value = results["summary"]["D"]["HL"][group]
        assert f"{100 * value['value']:+.1f} ± {100 * (value['high'] - value['value']):.1f}" in lines[0]
        assert f"{100 * results['summary']['differences']['HL'][group]['value']:+.1f}" in lines[1]
        kinds = probes["HL"][group]
        wanted = f"{100 * kinds['in_language']['mean']:.1f} / {100 * kinds['zero_shot']['mean']:.1f}"
        assert wanted in lines[2]


def lines_of(capsys, *folders: Path) -> list[str]:
    compare_runs(list(folders), Console(width=200))
    return capsys.readouterr().out.splitlines()


def test_compare_shows_each_run_as_it_was_measured(finished, tmp_path, capsys) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished / "evaluation", other / "evaluation")
    shutil.copy(finished / "recipe.yaml", other)
    place = other / "evaluation" / "mlm" / "ranks.npz"
    with np.load(place) as arrays:
        ranks = dict(arrays)
    # Here the student predicts every token at rank 1: its MRR is 1.
    for language in ("en", "ru"):
        ranks[f"{language}/held_out/shared//live"] = np.ones_like(ranks[f"{language}/held_out/shared//live"])
    np.savez(place, **ranks)
    summary = json.loads((finished / "evaluation" / "mlm.json").read_text("utf-8"))["summary"]
    lines = lines_of(capsys, finished, other)
    (first, _), (second, difference) = (
        [line for line in lines if line.strip().startswith(f"{name}: stored ")] for name in ("run", "other")
    )
    assert first.split()[1:] == second.split()[1:]
    assert f"{100 * summary['differences']['stored']['all']['value']:+.1f}" in difference
    own, changed = (
        next(line for line in lines if line.strip().startswith(f"{name}: live ")) for name in ("run", "other")
    )
    assert f"{100 * summary['D']['live']['all']['value']:+.1f} ±" in own
    assert f"{100 * (1 - summary['mrr']['teacher']['all']):+.1f} ±" in changed
    ranks["ru/held_out/shared//teacher"] = ranks["ru/held_out/shared//teacher"] + 1
    np.savez(place, **ranks)
    with pytest.raises(RunFolderError, match=r"other teachers or masked tokens than .* \(ru\)"):
        lines_of(capsys, finished, other)
    place.write_bytes(place.read_bytes()[:-100])
    with pytest.raises(RunFolderError, match="is damaged"):
        lines_of(capsys, finished, other)


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("recipe: merge", "is a run of the kind 'merge'"),
        ("recipe: pretrain", "cannot be compared: its recipe.yaml's kind is 'pretrain'"),
        ("recipe: [", "its recipe.yaml is damaged (ParserError)"),
        ("- merge", "kind is None"),
        (None, "is not a run's folder"),
    ],
)
def test_compare_says_what_a_folder_is(finished, tmp_path, capsys, recipe, wanted) -> None:
    if recipe:
        (tmp_path / "recipe.yaml").write_text(recipe, "utf-8")
    with pytest.raises(RunFolderError, match=re.escape(wanted)):
        lines_of(capsys, finished, tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, texts) -> Path:
    """A run with a student for each way of learning."""
    values = balance_values(texts, tmp_path_factory.mktemp("balance") / "run")
    # More than there are, so that evaluation measures all examples.
    values["evaluation"]["max_examples"] = 500
    values["students"] = {
        "live": {"labels": "both"},
        "stored": {"labels": "soft", "predictions": "stored", "truncate": 10_000},
        "less": {"labels": "soft", "predictions": "stored", "truncate": 5_000},
        "smoothed": {"labels": "gold", "truncate": "none", "smoothing_alpha": 0.0},
    }
    return run_recipe(parse_recipe(values), show=lambda line: None)


def test_students_learn_in_the_ways_that_they_say(finished) -> None:
    logs = {
        name: json.loads((finished / "students" / name / "log.json").read_text("utf-8"))
        for name in ("live", "stored", "less", "smoothed")
    }
    assert logs["live"]["log"][0]["teacher_weight"] == 0.5
    assert "kd_loss" in logs["stored"]["log"][0]
    assert "kd_loss" not in logs["smoothed"]["log"][0]
    assert logs["smoothed"]["probabilities"] == {"en": 0.5, "ru": 0.5}
    assert max(logs["stored"]["characters"].values()) <= 10_000
    assert all(logs["less"]["examples"][name] < 0.7 * n for name, n in logs["stored"]["examples"].items())
    # The store holds what the student sees, and no more.
    from polydistill.store.reader import Store

    store = Store(finished / "store" / "en" / "teacher")
    train = Examples(finished / "corpora" / "en" / "train.arrow")
    seen = set(store.examples.tolist())
    size = sum(
        int(n)
        for n, example_id in zip(train.num_characters, train.ids, strict=True)
        if int(example_id) in seen
    )
    assert 9_000 < size <= 10_000


def test_a_folder_of_an_earlier_version_which_gave_every_student_a_tail_goes_on(finished, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    recorded = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8")) | {"output": str(folder)}
    for name in ("live", "smoothed"):
        assert recorded["students"][name]["tail"] is None
        stamp = json.loads((folder / "students" / name / "final" / "stamp.json").read_text("utf-8"))
        assert '"tail": "bucket"' in json.dumps(stamp)
    recipe = parse_recipe(recorded)
    for name in ("live", "smoothed"):
        recorded["students"][name]["tail"] = "bucket"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recorded), "utf-8")
    said: list[str] = []
    run_recipe(recipe, show=said.append)
    assert said
    assert not any("step " in line for line in said)


def test_a_teacher_of_before_is_not_trained_again(finished, texts, tmp_path) -> None:
    values = balance_values(texts, tmp_path / "run")
    values["tokenizer"] = {"vocabulary": str(finished / "tokenizer")}
    values["languages"]["ru"]["teacher"] = str(finished / "teachers" / "ru" / "final")
    values["students"] = {"ours": {}}
    said = []
    # No student learns from stored predictions: only the teachers are made, and nothing is scored.
    scored = run_recipe(parse_recipe(values), until="score", show=said.append)
    assert not (scored / "store").exists()
    run = run_recipe(parse_recipe(values), show=said.append)
    assert not (run / "teachers" / "ru").exists()
    assert (run / "teachers" / "en" / "final").is_dir()
    assert not any(line.startswith("teachers/ru") for line in said)


@pytest.mark.slow
def test_the_same_recipe_twice_gives_the_same_bytes(texts, tmp_path) -> None:
    students = []
    for name in ("one", "two"):
        values = balance_values(texts, tmp_path / name)
        values["students"] = {"ours": {}}
        run = run_recipe(parse_recipe(values), until="train", show=lambda line: None)
        students.append((run / "students" / "ours" / "final" / "model.safetensors").read_bytes())
    assert students[0] == students[1]


def test_parts_of_a_text_lie_within_larger_parts(finished) -> None:
    from polydistill.pipelines.balance.state import LanguageText

    text = LanguageText(Examples(finished / "corpora" / "en" / "train.arrow"), 0)
    small, large = text.upto(5_000), text.upto(20_000)
    assert set(small.rows) < set(large.rows) < set(text.rows)
    assert small.total <= 5_000 < small.total + 400
    assert small.upto(20_000).total == small.total
    # In random order: not the beginning of the file.
    assert small.rows.max() > 2 * len(small.rows)
    assert text.taken == len(text.examples)
    assert np.array_equal(LanguageText(text.examples, 0).upto(5_000).rows, small.rows)


def test_what_stops_teachers_is_not_what_results_are_of(finished, texts) -> None:
    from polydistill.pipelines.balance.state import Balance
    from polydistill.pipelines.run_folder import open_run
    from polydistill.pipelines.stages.corpora import prepare_corpora

    recipe = parse_recipe(balance_values(texts, finished))
    run = open_run(recipe, show=lambda line: None)
    state = Balance(recipe, run)
    state.corpora = prepare_corpora(recipe, run, state.tokenizer)
    for_stopping, for_results = (set(part.ids.tolist()) for part in state.held_out("en"))
    assert for_stopping.isdisjoint(for_results)
    assert len(for_stopping) + len(for_results) == len(
        Examples(finished / "corpora" / "en" / "held_out.arrow")
    )
    results = json.loads((finished / "evaluation" / "mlm.json").read_text("utf-8"))["languages"]["en"]
    assert {row["num_examples"] for row in results if row["text"] == "held_out"} == {len(for_results)}
