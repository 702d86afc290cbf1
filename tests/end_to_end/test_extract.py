"""A whole extraction, as a process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.end_to_end.test_merge import polydistill, write_recipe
from transformers import AutoModelForMaskedLM, AutoTokenizer

from polydistill.config.load import parse_recipe
from polydistill.errors import RunFolderError
from polydistill.models.importance import read_importance
from polydistill.models.load import load_masked_lm
from polydistill.models.trim import trim_model
from polydistill.pipelines.run import run_recipe
from polydistill.store.reader import Store
from polydistill.tools.verify import verify_run

LOADS = """
import sys
from transformers import AutoModelForMaskedLM, AutoTokenizer
folder = sys.argv[1]
model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
batch = tokenizer(f"в {tokenizer.mask_token} и", "и ещё", return_tensors="pt")
assert "token_type_ids" not in batch
assert model(**batch).logits.shape[-1] == model.config.vocab_size == len(tokenizer)
assert tokenizer.mask_token_id in batch["input_ids"][0]
assert tokenizer.unk_token_id not in batch["input_ids"][0]
print("loaded", model.config.num_hidden_layers)
"""


def run(values: dict) -> Path:
    """Within this process: the tests above cover the command."""
    return run_recipe(parse_recipe(values), show=lambda line: None)


def test_run_makes_a_student_that_transformers_loads_and_a_second_run_does_nothing(
    tmp_path, extract_values
) -> None:
    cost = {"rounds": 1, "calls": 1, "shapes": [[1, 8]]}
    recipe = write_recipe(tmp_path, extract_values | {"cost": cost})
    first = polydistill("run", recipe)
    assert first.returncode == 0, first.stderr
    for wanted in (
        "2 of 4 layers from layers 0 2",
        "kd ",
        "cosine ",
        "pieces stay",
        "1 x 8",
        "with MLM head",
    ):
        assert wanted in first.stdout
    folder = Path(extract_values["output"])
    loaded = subprocess.run(
        [sys.executable, "-c", LOADS, str(folder / "student" / "final")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.stdout == "loaded 2\n", loaded.stderr
    kept = json.loads((folder / "student" / "final" / "kept.json").read_text("utf-8"))
    assert 100 < len(kept) < 700
    results = json.loads((folder / "evaluation" / "mlm.json").read_text("utf-8"))
    rows = results["languages"]["ru"]
    assert [(row["model"], row["tokenizer"]) for row in rows] == [
        ("teacher", "trimmed"),
        ("student", "trimmed"),
        ("teacher", "own"),
    ]
    assert rows[0]["num_masked"] == rows[1]["num_masked"]
    # Nearly all tokens are kept ones, so the teacher scores the same with either tokenizer.
    assert rows[0]["loss"] == pytest.approx(rows[2]["loss"], abs=0.05)
    assert rows[0]["mrr_teacher_pieces"] >= rows[0]["mrr"]
    assert results["summary"]["D"]["student"]["all"]["value"] == pytest.approx(
        rows[1]["mrr"] - rows[0]["mrr_teacher_pieces"]
    )
    measured = json.loads((folder / "cost" / "cost.json").read_text("utf-8"))
    assert [(row["model"], row["part"]) for row in measured] == [
        ("teacher", "encoder"),
        ("student", "encoder"),
        ("teacher", "model"),
        ("student", "model"),
    ]
    assert all(row["seconds"] > 0 for row in measured)
    assert measured[1]["pieces"] == len(kept) < measured[0]["pieces"]
    page = (folder / "report" / "index.html").read_text("utf-8")
    for wanted in ("<svg", "Cost of serving", "1 × 8", "KD", "MLM", "cosine", "MRR", "0 2"):
        assert wanted in page
    assert f"{rows[1]['mrr']:.3f} <small>± {rows[1]['mrr_error']:.3f}</small>" in page
    assert "<script" not in page
    card = (folder / "student" / "final" / "README.md").read_text("utf-8")
    assert "2 of 4 layers" in card
    assert "losses kd 5 to 0, mlm 2, cosine 1;" in card
    assert f"{rows[1]['mrr']:.3f}" in card
    assert str(tmp_path.parent) not in card
    before = {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.suffix in (".json", ".arrow", ".safetensors")
        and path.name not in ("environment.json", "timing.json", ".progress.json")
    }
    second = polydistill("run", recipe)
    assert second.returncode == 0, second.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    compared = polydistill("compare", str(folder), str(folder))
    assert compared.returncode == 0, compared.stderr


@pytest.mark.slow
def test_the_same_recipe_twice_gives_the_same_bytes(tmp_path, extract_values) -> None:
    students = []
    for name in ("one", "two"):
        done = polydistill("train", write_recipe(tmp_path, extract_values | {"output": str(tmp_path / name)}))
        assert done.returncode == 0, done.stderr
        final = tmp_path / name / "student" / "final"
        students.append({p.name: p.read_bytes() for p in final.iterdir() if p.name != "stamp.json"})
    assert students[0].keys() == students[1].keys()
    assert [name for name in students[0] if students[0][name] != students[1][name]] == []


def test_cut_after_training_the_student_is_the_trained_one_with_fewer_pieces(extract_values) -> None:
    folder = run(extract_values | {"trim": {"when": "after", "size": 400}, "student": {"init": [3, 1, 0]}})
    student = AutoModelForMaskedLM.from_pretrained(folder / "student" / "final")
    trained = AutoModelForMaskedLM.from_pretrained(folder / "student" / "untrimmed")
    tokenizer = AutoTokenizer.from_pretrained(folder / "student" / "final")
    kept = torch.tensor(json.loads((folder / "student" / "final" / "kept.json").read_text("utf-8")))
    assert student.config.vocab_size == len(kept) <= 400 < trained.config.vocab_size
    ids = tokenizer("в начале", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(
            student(input_ids=ids).logits,
            trained(input_ids=kept[ids]).logits[..., kept],
            atol=1e-4,
            rtol=1e-5,
        )
    record = json.loads((folder / "student" / "final" / "initialisation.json").read_text("utf-8"))
    assert record["layers"] == [3, 1, 0]
    assert record["models"]["student"]["rows"] == len(kept)


def test_stored_predictions_teach_without_the_teacher_beside(extract_values, tmp_path) -> None:
    stored = {
        "losses": {"predictions": "stored", "kd": {"first": 3, "last": 1}},
        "scoring": {"top_k": 4, "precision": "float32"},
    }
    folder = run(extract_values | stored)
    kept = json.loads((folder / "student" / "final" / "kept.json").read_text("utf-8"))
    store = Store(folder / "store" / "ru" / "teacher")
    # The teacher scored with the kept pieces alone.
    assert store.identity["vocabulary_size"] == len(kept)
    assert max(int(store.row(row).top_ids.max()) for row in range(len(store))) < len(kept)
    teacher = trim_model(load_masked_lm(extract_values["teacher"]), np.array(kept))
    row = store.row(0)
    with torch.no_grad():
        logits = teacher(input_ids=torch.from_numpy(row.input_ids.astype(np.int64))[None]).logits[0]
    logprobs = logits[torch.from_numpy(row.positions.astype(np.int64))].log_softmax(-1)
    own = logprobs.gather(1, torch.from_numpy(row.top_ids.astype(np.int64)))
    torch.testing.assert_close(
        own, torch.from_numpy(row.top_logprobs.astype(np.float32)), atol=0.05, rtol=0.02
    )
    assert (own[:, 0] >= logprobs.max(-1).values - 0.05).all()
    log = json.loads((folder / "student" / "log.json").read_text("utf-8"))["log"]
    assert log[0].keys() >= {"kd_loss", "mlm_loss", "kd_weight"}
    assert log[0]["kd_weight"] > log[1]["kd_weight"] > 1
    # Another run reuses the store, whatever its other losses are.
    again = run(
        extract_values
        | {
            "losses": {"predictions": "stored", "kd": 1},
            "scoring": {"top_k": 4, "precision": "float32"},
            "output": str(tmp_path / "again"),
            "reuse": [str(folder)],
        }
    )
    assert not (again / "store").exists()
    assert (again / "student" / "final" / "model.safetensors").is_file()


def test_the_whole_vocabulary_and_random_weights(extract_values, texts) -> None:
    changes = {
        "trim": {"when": "none"},
        "student": {"init": "random", "num_layers": 1, "config": {"hidden_size": 16}},
        "losses": {"cosine": 0, "relation": {"first": 1, "last": 0}, "positions": "masked"},
        "evaluation_texts": {"other": str(texts["en"])},
    }
    folder = run(extract_values | changes)
    rows = json.loads((folder / "evaluation" / "mlm.json").read_text("utf-8"))["languages"]["ru"]
    assert [(row["text"], row["model"], row["tokenizer"]) for row in rows] == [
        ("held_out", "teacher", "own"),
        ("held_out", "student", "own"),
        ("other", "teacher", "own"),
        ("other", "student", "own"),
    ]
    log = json.loads((folder / "student" / "log.json").read_text("utf-8"))["log"]
    assert log[0].keys() >= {"kd_loss", "mlm_loss", "relation_loss", "relation_weight"}
    assert "cosine_loss" not in log[0]


ADAPT = {"adapt": {"max_steps": 30, "learning_rate": 2e-3, "warmup_steps": 0}}


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_adapted_teacher_knows_the_language_better_and_is_what_the_student_starts_from(
    extract_values, when
) -> None:
    student = {"init": "stride", "num_layers": 4}
    # A rate of 0 leaves the student as it started.
    still = {"training": extract_values["training"] | {"learning_rate": 0.0, "weight_decay": 0.0}}
    folder = run(extract_values | ADAPT | still | {"student": student, "trim": {"when": when}})
    adapted = load_masked_lm(str(folder / "teacher" / "adapted"))
    kept = np.array(json.loads((folder / "student" / "final" / "kept.json").read_text("utf-8")))
    start = load_masked_lm(str(folder / "student" / "final"))
    assert adapted.config.vocab_size == (len(kept) if when == "before" else 700)
    ids = torch.arange(5, 29).view(2, 12)
    theirs = torch.from_numpy(kept)
    with torch.no_grad():
        got = start(input_ids=ids).logits
        wanted = adapted(input_ids=ids if when == "before" else theirs[ids]).logits
    torch.testing.assert_close(got, wanted if when == "before" else wanted[..., theirs], atol=1e-4, rtol=1e-4)
    rows = json.loads((folder / "evaluation" / "mlm.json").read_text("utf-8"))["languages"]["ru"]
    assert [(row["model"], row["tokenizer"]) for row in rows] == [
        ("teacher", "trimmed"),
        ("adapted", "trimmed"),
        ("student", "trimmed"),
        ("teacher", "own"),
    ]
    assert rows[1]["loss"] < rows[0]["loss"] - 0.1
    # The student is the adapted teacher, guessing among the kept pieces.
    among = rows[1].get("mrr_teacher_pieces", rows[1]["mrr"])
    assert rows[2]["mrr"] == pytest.approx(among, abs=0.01)
    log = json.loads((folder / "teacher" / "log.json").read_text("utf-8"))
    assert log["arguments"]["max_steps"] == 30
    assert log["arguments"]["per_device_train_batch_size"] == 8
    mlm = [entry["mlm_loss"] for entry in log["log"] if "mlm_loss" in entry]
    assert mlm[-1] < mlm[0]
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher" / "adapted")
    assert len(tokenizer) == adapted.config.vocab_size
    assert "trained on the language's text by MLM, 30 steps" in (
        folder / "student" / "final" / "README.md"
    ).read_text("utf-8")
    page = (folder / "report" / "index.html").read_text("utf-8")
    assert "adapted teacher's MRR" in page
    assert "after 30 steps on the language" in page
    lines = verify_run(folder)
    assert any("teacher/adapted" in line and "whole" in line for line in lines)
    assert any("teacher/log.json" in line for line in lines)
    (folder / "teacher" / "log.json").unlink()
    with pytest.raises(RunFolderError, match=r"teacher/log.json.*is gone"):
        verify_run(folder)


def test_the_adapted_teacher_is_in_the_identity_of_what_it_teaches(extract_values, tmp_path) -> None:
    """Stored predictions are the adapted teacher's; without `adapt` a run has an earlier run's identity."""
    stored = {"losses": {"predictions": "stored"}, "scoring": {"top_k": 4, "precision": "float32"}}
    plain = run(extract_values | stored)
    folder = run(extract_values | stored | ADAPT | {"output": str(tmp_path / "b"), "reuse": [str(plain)]})
    assert (folder / "store" / "ru" / "teacher").is_dir()
    store = Store(folder / "store" / "ru" / "teacher")
    adapted = load_masked_lm(str(folder / "teacher" / "adapted"))
    row = store.row(0)
    with torch.no_grad():
        logits = adapted(input_ids=torch.from_numpy(row.input_ids.astype(np.int64))[None]).logits[0]
    logprobs = logits[torch.from_numpy(row.positions.astype(np.int64))].log_softmax(-1)
    own = logprobs.gather(1, torch.from_numpy(row.top_ids.astype(np.int64)))
    torch.testing.assert_close(
        own, torch.from_numpy(row.top_logprobs.astype(np.float32)), atol=0.05, rtol=0.02
    )
    inputs = [
        json.loads((place / "student" / "final" / "stamp.json").read_text("utf-8"))["inputs"]
        for place in (plain, folder)
    ]
    fingerprint = json.loads((folder / "teacher" / "adapted" / "stamp.json").read_text("utf-8"))[
        "fingerprint"
    ]
    assert inputs[1]["teacher"] == fingerprint != inputs[0]["teacher"]
    assert inputs[0].keys() == {
        *("stage", "steps", "corpus", "teacher", "tokenizer", "student"),
        *("losses", "store", "masking", "training", "seed"),
    }
    evaluated = [
        json.loads((place / "evaluation" / "stamp.json").read_text("utf-8"))["inputs"]
        for place in (plain, folder)
    ]
    assert "adapted" not in evaluated[0]
    assert evaluated[1]["adapted"] == fingerprint
    # A third run copies the adapted teacher.
    third = run(
        extract_values | stored | ADAPT | {"output": str(tmp_path / "c"), "reuse": [str(folder)], "trim": {}}
    )
    one, two = (
        (place / "teacher" / "adapted" / "model.safetensors").read_bytes() for place in (folder, third)
    )
    assert one == two


def test_a_narrower_student_starts_from_the_most_important_parts(extract_values, tmp_path) -> None:
    """Only the sizes are said; the losses are the default ones, cosine among them."""
    student = {"num_layers": 3, "hidden_size": 16, "intermediate_size": 24}
    still = {"training": extract_values["training"] | {"learning_rate": 0.0, "weight_decay": 0.0}}
    values = extract_values | still | {"student": student}
    folder = run(values)
    made = load_masked_lm(str(folder / "student" / "final"))
    assert (made.config.hidden_size, made.config.num_attention_heads) == (16, 1)
    importance = read_importance(folder / "teacher" / "importance")
    kept = np.array(json.loads((folder / "student" / "final" / "kept.json").read_text("utf-8")))
    teacher = trim_model(load_masked_lm(extract_values["teacher"]), kept).state_dict()
    hidden = np.sort(np.argsort(-importance.hidden, kind="stable")[:16])
    rows = made.get_input_embeddings().weight
    torch.testing.assert_close(rows, teacher["bert.embeddings.word_embeddings.weight"][:, hidden])
    # Layers 0, 1 and 2 of 4; one head of two, of 16 dimensions each.
    for layer in range(3):
        head = int(np.argmax(importance.heads[layer])) * 16
        units = np.sort(np.argsort(-importance.units[layer], kind="stable")[:24])
        ours, theirs = made.bert.encoder.layer[layer], f"bert.encoder.layer.{layer}."
        torch.testing.assert_close(
            ours.attention.self.value.weight,
            teacher[theirs + "attention.self.value.weight"][head : head + 16][:, hidden],
        )
        torch.testing.assert_close(
            ours.output.dense.weight, teacher[theirs + "output.dense.weight"][hidden][:, units]
        )
    record = json.loads((folder / "student" / "final" / "initialisation.json").read_text("utf-8"))
    assert record["narrowed"]["hidden_size"]["kept"] == 16
    assert record["narrowed"]["hidden_size"]["importance"] == pytest.approx(
        importance.hidden[hidden].sum() / importance.hidden.sum(), abs=1e-4
    )
    log = json.loads((folder / "student" / "log.json").read_text("utf-8"))["log"]
    assert log[0].keys() >= {"kd_loss", "mlm_loss", "cosine_loss"}
    assert "logits_loss" not in log[0]
    # Near the teacher in these dimensions from the first step: two unrelated states have a cosine of about 0.
    assert log[0]["cosine_loss"] < 0.8
    assert "hidden_size 16 of 32" in (folder / "student" / "final" / "README.md").read_text("utf-8")
    page = (folder / "report" / "index.html").read_text("utf-8")
    assert "importance kept" in page
    # The same sizes elsewhere take the importances from here; one of the teacher's widths needs none.
    again = run(values | {"output": str(tmp_path / "again"), "reuse": [str(folder)], "seed": 0})
    stamps = [(place / "teacher" / "importance" / "stamp.json").read_bytes() for place in (folder, again)]
    assert stamps[0] == stamps[1]
    whole = run(extract_values | {"student": {"hidden_size": 32}, "output": str(tmp_path / "whole")})
    assert not (whole / "teacher").exists()


def test_other_widths_with_random_weights(extract_values) -> None:
    student = {"init": "random", "hidden_size": 20, "num_attention_heads": 2, "intermediate_size": 8}
    folder = run(extract_values | {"student": student, "losses": {"cosine": 0}})
    config = load_masked_lm(str(folder / "student" / "final")).config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (20, 2, 8)
    assert not (folder / "teacher").exists()
