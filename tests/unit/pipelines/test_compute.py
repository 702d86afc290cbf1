"""What a run's models cost, from records written by hand."""

import json

import pytest
import yaml
from transformers import BertConfig, BertForMaskedLM

from polydistill.disk import write_json
from polydistill.evaluation.compute import forward_operations, sizes_of
from polydistill.pipelines.stages.compute import over_seeds, run_compute

MASKED, STEPS, BATCH, TOKENS = 0.25, 10, 4, 1200


def write_run(folder, model, recipe: dict, *, tokens: int | None = TOKENS, seconds: float = 7.0) -> None:
    """A run that trained `model` for ten steps of four sequences, 30 tokens each."""
    model.save_pretrained(folder / "student" / "final")
    arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    log = {
        "log": [{"step": 5}, {"step": STEPS, "train_runtime": 1.0}],
        "arguments": arguments,
        "tokens": tokens,
    }
    write_json(folder / "student" / "log.json", log)
    write_json(folder / "timing.json", {"train": seconds, "score/ko/t": 2.5})
    text = yaml.safe_dump({"masking": {"probability": MASKED}} | recipe)
    (folder / "recipe.yaml").write_text(text, "utf-8")


def write_store(folder) -> None:
    shards = [{"tokens": 100, "masked": 20, "examples": 4}, {"tokens": 60, "masked": 10, "examples": 4}]
    write_json(folder / "manifest.json", {"shards": shards})


@pytest.fixture(scope="module")
def model():
    return BertForMaskedLM(
        BertConfig(
            vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
        )
    )


def test_a_student_s_training_its_scoring_and_its_teacher(tmp_path, model) -> None:
    """Teacher and store are in the grid; the second run reuses the first one's store."""
    teacher = tmp_path / "t"
    write_run(teacher, model, {"recipe": "pretrain"}, seconds=3.0)
    recipe = {"recipe": "merge", "teachers": {"t": {"model": str(teacher / "student" / "final")}}}
    for name, place in (("one", "store/ko/t"), ("two", str(tmp_path / "one" / "store" / "ko" / "t"))):
        write_run(tmp_path / name, model, recipe)
        write_json(tmp_path / name / "artefacts.json", {"store/ko/t": place})
    write_store(tmp_path / "one" / "store" / "ko" / "t")
    sizes = sizes_of(teacher / "student" / "final")
    # A layer: four of 8 x 8, two of 8 x 16; the head's 8 x 8 and the table of 50 x 8; one layer of width 8.
    assert sizes == (4 * 64 + 2 * 128, 8, 64 + 400)
    training = 3 * (2 * 512 * TOKENS + 4 * 8 * 30 * TOKENS + 2 * 464 * TOKENS * MASKED)
    scoring = 2 * 512 * 160 + 4 * 8 * 20 * 160 + 2 * 464 * 30
    assert forward_operations(sizes, 160, 20, 30) == scoring
    for name in ("one", "two"):
        row = run_compute(tmp_path / name, tmp_path)["student"]
        assert row["steps"] == STEPS
        assert (row["training"]["seconds"], row["training"]["flops"]) == (7.0, pytest.approx(training))
        assert row["scoring"] == {"seconds": 2.5, "flops": pytest.approx(scoring)}
        assert row["teachers"] == {"seconds": 3.0, "flops": pytest.approx(training)}
        assert row["counted"] == ["training", "scoring", "teachers"]
        assert row["total"] == {"seconds": 12.5, "flops": pytest.approx(2 * training + scoring)}
    # By itself a run is charged for what lies in its own folder alone.
    assert run_compute(tmp_path / "one")["student"]["counted"] == ["training", "scoring"]
    assert run_compute(tmp_path / "two")["student"]["counted"] == ["training"]
    assert run_compute(tmp_path / "none") == {}


def test_what_is_not_known_is_not_made_up(tmp_path, model) -> None:
    """Logs of earlier versions have no tokens; a copied model has its training's seconds in its log."""
    write_run(tmp_path / "old", model, {"recipe": "pretrain"}, tokens=None)
    row = run_compute(tmp_path / "old")["student"]
    assert (row["training"]["flops"], row["total"]["flops"], row["total"]["seconds"]) == (None, None, 7.0)
    write_json(tmp_path / "old" / "timing.json", {})
    assert run_compute(tmp_path / "old")["student"]["training"]["seconds"] == 1.0


def test_an_adapted_teacher_is_a_teacher_that_was_trained(tmp_path, model) -> None:
    run = tmp_path / "adapted"
    write_run(run, model, {"recipe": "extract", "teacher": {"model": "org/name"}})
    before = run_compute(run)["student"]
    assert before["teachers"] is None
    model.save_pretrained(run / "teacher" / "adapted")
    log = json.loads((run / "student" / "log.json").read_text("utf-8"))
    write_json(run / "teacher" / "log.json", log)
    timing = json.loads((run / "timing.json").read_text("utf-8"))
    write_json(run / "timing.json", timing | {"adapt": 11.0})
    after = run_compute(run)["student"]
    # The same log as the student's, of a model of the same shape.
    assert after["teachers"] == {"seconds": 11.0, "flops": before["training"]["flops"]}


def test_hard_labels_of_a_balance_have_no_teacher(tmp_path, model) -> None:
    run = tmp_path / "b"
    write_run(
        run, model, {"recipe": "balance", "students": {"HL": {"labels": "gold"}, "ours": {"labels": "soft"}}}
    )
    (run / "student").rename(run / "moved")
    for name in ("HL", "ours"):
        model.save_pretrained(run / "students" / name / "final")
        write_json(
            run / "students" / name / "log.json", {"log": [{"step": 10}], "arguments": {}, "tokens": 100}
        )
    model.save_pretrained(run / "teachers" / "ko" / "final")
    write_json(run / "teachers" / "ko" / "log.json", {"log": [{"step": 4}], "arguments": {}, "tokens": 40})
    rows = run_compute(run)
    assert set(rows) == {"HL", "ours"}
    assert rows["HL"]["scoring"] is None
    sizes = sizes_of(run / "teachers" / "ko" / "final")
    live = forward_operations(sizes, 100, 10, 100 * MASKED)
    assert rows["ours"]["scoring"] == {"seconds": 0.0, "flops": pytest.approx(live)}


def test_means_over_seeds() -> None:
    def row(seconds: float, scored: bool) -> dict:
        part = {"seconds": seconds, "flops": 10 * seconds}
        return {
            "student": {
                "steps": 4,
                "training": part,
                "scoring": part if scored else None,
                "teachers": None,
                "total": part,
            }
        }

    mean = over_seeds([row(1.0, True), row(3.0, False)])["student"]
    assert (mean["steps"], mean["runs"]) == (4, 2)
    assert mean["training"] == {"seconds": 2.0, "flops": 20.0}
    assert mean["scoring"] == {"seconds": 1.0, "flops": 10.0}
    assert (mean["teachers"], mean["counted"]) == (None, ["training", "scoring"])
