"""A whole merge, as a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml


def polydistill(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "polydistill", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200"},
        check=False,
    )


def write_recipe(folder: Path, values: dict) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return str(path)


LOADS = """
import sys
from transformers import AutoModelForMaskedLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForMaskedLM.from_pretrained(folder)
own = f"{folder}/tokenizer/"
for path, text in ((folder, "the {} и"), (own + "en", "the {} a"), (own + "ru", "в {} и")):
    tokenizer = AutoTokenizer.from_pretrained(path)
    batch = tokenizer(text.format(tokenizer.mask_token), return_tensors="pt")
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape[-1] == model.config.vocab_size >= len(tokenizer), (logits.shape, len(tokenizer))
    assert tokenizer.mask_token_id == 4 and tokenizer.unk_token_id not in batch["input_ids"][0]
print("loaded")
"""


def test_run_makes_a_student_that_transformers_loads_and_a_second_run_does_nothing(
    tmp_path, recipe_values
) -> None:
    recipe = write_recipe(tmp_path, recipe_values)
    first = polydistill("run", recipe)
    assert first.returncode == 0, first.stderr
    run = Path(recipe_values["output"])
    results = json.loads((run / "evaluation" / "mlm.json").read_text("utf-8"))
    assert {(row["model"], row["tokenizer"], row["teacher"]) for row in results["languages"]["en"]} == {
        ("student", "union", None),
        ("en", "own", "en"),
        ("student", "own", "en"),
        ("en2", "own", "en2"),
        ("student", "own", "en2"),
    }
    page = (run / "report" / "index.html").read_text("utf-8")
    for row in results["languages"]["en"]:
        assert f"{row['mrr']:.3f} <small>± {row['mrr_error']:.3f}</small>" in page
    card = (run / "student" / "final" / "README.md").read_text("utf-8")
    assert f"{results['languages']['en'][0]['mrr']:.3f}" in card
    loaded = subprocess.run(
        [sys.executable, "-c", LOADS, str(run / "student" / "final")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.stdout == "loaded\n", loaded.stderr
    weights = run / "student" / "final" / "model.safetensors"
    before = {
        path: path.stat().st_mtime_ns
        for path in (weights, *run.rglob("shard-*.arrow"), *run.rglob("*.json"))
        if path.name not in ("environment.json", "timing.json", ".progress.json")
    }
    second = polydistill("run", recipe)
    assert second.returncode == 0, second.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    compared = polydistill("compare", str(run), str(run))
    assert compared.returncode == 0, compared.stderr
    own = [line for line in compared.stdout.splitlines() if line.strip().startswith(str(run))]
    assert own
    assert not any("*" in line or "+0." in line for line in own), "a run is not measured by itself"
    # The teacher is compared: its difference from the student is beside it.
    assert any("teacher" in line and line.count("0.") > 2 for line in compared.stdout.splitlines())
    assert f"{results['languages']['en'][0]['mrr']:.3f}" in compared.stdout
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("recipe: merge\n", "utf-8")
    refused = polydistill("compare", str(run), str(tmp_path / "begun"))
    assert refused.returncode == 2
    assert "ranks.npz" in refused.stderr
    inspected = polydistill("store", "inspect", str(run / "store" / "en" / "en"))
    assert inspected.returncode == 0, inspected.stderr
    assert "[MASK]" in inspected.stdout
    assert "masked positions" in inspected.stdout
    assert polydistill("store", "verify", str(run / "store")).stdout.count("whole") == 3


def test_the_report_shows_every_language_and_needs_no_network(tmp_path, recipe_values) -> None:
    recipe_values["languages"]["en"]["evaluation"] = {"other": recipe_values["languages"]["ru"]["text"]}
    recipe_values["languages"]["ru"]["teachers"] = ["ru"]
    del recipe_values["languages"]["ru"]
    del recipe_values["teachers"]["ru"]
    done = polydistill("run", write_recipe(tmp_path, recipe_values))
    assert done.returncode == 0, done.stderr
    page = (Path(recipe_values["output"]) / "report" / "index.html").read_text("utf-8")
    for wanted in ("<svg", "unigram", "other", "en2", "kd", "drift"):
        assert wanted.lower() in page.lower()
    assert "<script" not in page
    assert 'src="http' not in page
    assert 'href="http' not in page.replace('xmlns:xlink="http', "")
    # A moved folder has everything that its page needs.
    moved = Path(recipe_values["output"]).rename(tmp_path / "moved")
    (moved / "report" / "index.html").unlink()
    done = polydistill("report", str(moved))
    assert done.returncode == 0, done.stderr
    assert (moved / "report" / "index.html").is_file()


def test_the_same_recipe_twice_gives_the_same_bytes(tmp_path, recipe_values) -> None:
    students = []
    for name in ("one", "two"):
        values = recipe_values | {"output": str(tmp_path / name)}
        done = polydistill("train", write_recipe(tmp_path, values))
        assert done.returncode == 0, done.stderr
        final = tmp_path / name / "student" / "final"
        students.append(
            {
                path.relative_to(final): path.read_bytes()
                for path in final.rglob("*")
                if path.is_file() and path.name != "stamp.json"
            }
        )
    assert students[0].keys() == students[1].keys()
    assert [name for name in students[0] if students[0][name] != students[1][name]] == []


def test_plan_prints_sizes_times_and_conflicts(tmp_path, recipe_values) -> None:
    del recipe_values["languages"]["ru"]
    recipe_values["corpora"]["max_length"] = 64
    planned = polydistill("plan", write_recipe(tmp_path, recipe_values))
    assert planned.returncode == 0, planned.stderr
    for wanted in ("tokens/s", "parameters", "teacher ru has no language", "remedy"):
        assert wanted in planned.stdout
    assert "max_steps" not in planned.stdout
    full = polydistill("plan", "--full", write_recipe(tmp_path, recipe_values))
    assert "max_steps: 8" in full.stdout
    assert not Path(recipe_values["output"]).exists()


def test_help_teaches() -> None:
    shown = polydistill("--help")
    assert shown.returncode == 0
    for command in (
        "demo",
        "run",
        "plan",
        "score",
        "train",
        "evaluate",
        "report",
        "pretrain",
        "store",
        "vocab",
    ):
        assert command in shown.stdout


def test_plan_lists_every_problem_that_it_finds(tmp_path, recipe_values) -> None:
    recipe_values["teachers"]["ru"] = str(tmp_path / "nowhere")
    recipe_values["languages"]["en"]["text"] = "missing.txt"
    planned = polydistill("plan", write_recipe(tmp_path, recipe_values))
    assert planned.returncode == 2, planned.stderr
    assert "error: teachers.ru" in planned.stdout
    assert "error: languages.en.text[0] 'missing.txt'" in planned.stdout
    assert "2 errors\n" in planned.stdout
