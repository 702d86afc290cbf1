"""Runs: what is refused before scoring, what is reused, and what is not repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from polydistill.config.load import parse_recipe
from polydistill.errors import UserError
from polydistill.pipelines.run import run_recipe
from polydistill.reports.merge_page import gather_merge
from polydistill.tokenization.load import load_tokenizer
from polydistill.tokenization.union import unite


def run(values: dict, until: str, *, update: bool = False) -> Path:
    return run_recipe(parse_recipe(values), until=until, update=update, show=lambda line: None)


def test_a_typo_that_is_mended_needs_no_update(recipe_values) -> None:
    right = recipe_values["teachers"]["en"]
    recipe_values["teachers"]["en"] = "/nowhere/typo"
    with pytest.raises(UserError, match="no such folder"):
        run(recipe_values, "tokenizer")
    recipe_values["teachers"]["en"] = right
    run(recipe_values, "tokenizer")


def test_the_order_of_teachers_is_part_of_what_a_tokenizer_is_made_from(recipe_values) -> None:
    run(recipe_values, "tokenizer")
    recipe_values["teachers"] = dict(reversed(recipe_values["teachers"].items()))
    path = run(recipe_values, "train", update=True)
    final = json.loads((path / "student/final/tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    union = unite([load_tokenizer(str(model)) for model in recipe_values["teachers"].values()])
    assert [final[string] for string in union.strings()] == list(range(union.size))


def test_a_mistake_in_the_student_is_said_before_anything_is_scored(recipe_values) -> None:
    recipe_values["student"]["config"]["hidden_sise"] = 32
    with pytest.raises(UserError, match="hidden_sise"):
        run(recipe_values, "train")
    assert not list(Path(recipe_values["output"]).glob("store/*/*/manifest.json"))


def test_a_run_that_reuses_another_reports_its_own_figures(recipe_values, tmp_path) -> None:
    other = run(
        recipe_values
        | {"output": str(tmp_path / "other"), "corpora": {"max_length": 16, "held_out_share": 0.2}},
        "score",
    )
    path = run(recipe_values | {"reuse": [str(other)]}, "report")

    shown = gather_merge(path)
    assert {store["identity"]["max_length"] for store in shown["stores"]} == {32}
    again = run(recipe_values | {"output": str(tmp_path / "third"), "reuse": [str(path)]}, "report")
    assert not list(again.glob("store/*/*/*.arrow"))
    assert gather_merge(again)["stores"] == shown["stores"]


def test_a_student_of_a_run_that_is_reused_is_not_trained_again(recipe_values, tmp_path) -> None:
    first = run(recipe_values, "train")
    said: list[str] = []
    values = recipe_values | {"name": "again", "output": str(tmp_path / "again"), "reuse": [str(first)]}
    again = run_recipe(parse_recipe(values), until="evaluate", show=said.append)
    assert f"student: taken from {first / 'student' / 'final'}" in said
    assert "train" not in json.loads((again / "timing.json").read_text("utf-8"))
    for name in ("final/model.safetensors", "log.json"):
        assert (again / "student" / name).read_bytes() == (first / "student" / name).read_bytes()
    card = (again / "student" / "final" / "README.md").read_text("utf-8")
    assert card.count("again") > (first / "student" / "final" / "README.md").read_text("utf-8").count("again")
    # It is the run's own copy: the other run may be removed.
    shutil.rmtree(first / "student")
    assert run_recipe(parse_recipe(values), until="evaluate", show=said.append) == again
    weights = (again / "student/final/model.safetensors").read_bytes()
    turned = dict(reversed(values["languages"].items()))
    for name, change in {"seed": {"seed": 5}, "order": {"languages": turned}}.items():
        third = run(values | {"output": str(tmp_path / name), "reuse": [str(again)]} | change, "train")
        assert (third / "student/final/model.safetensors").read_bytes() != weights, name
    # Without its log a student is incomplete.
    (again / "student" / "log.json").unlink()
    fourth = run(values | {"output": str(tmp_path / "fourth"), "reuse": [str(again)]}, "train")
    assert "train" in json.loads((fourth / "timing.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"training": {"max_steps": 2, "learning_rate": "fast"}}, "training.learning_rate 'fast'"),
        ({"training": {"max_steps": 2, "per_device_train_batch_size": 0}}, "per_device_train_batch_size 0"),
        ({"training": {"max_steps": 2, "optim": "adafoo"}}, "adafoo"),
        ({"training": {"max_steps": 2, "eval_strategy": "steps"}}, "training.eval_strategy"),
        ({"student": {"config": {"hidden_size": "big"}}}, "student.config"),
        ({"student": {"config": {"hidden_size": 33, "num_attention_heads": 2}}}, "student.model_type 'bert'"),
        ({"student": {"model_type": "t5"}}, "student.model_type 't5'"),
        ({"student": {"init": "teachers", "config": {"hidden_size": 64}}}, "student.encoder_from 'en'"),
    ],
)
def test_mistakes_are_said_before_anything_is_scored(recipe_values, change, wanted) -> None:
    with pytest.raises(UserError) as caught:
        run(recipe_values | change, "train")
    assert wanted in str(caught.value)
    assert not list(Path(recipe_values["output"]).rglob("*.arrow"))


def test_the_recipe_that_a_run_writes_is_the_one_that_it_was_started_with(
    recipe_values, teachers, tmp_path
) -> None:
    """A student that starts from a teacher has its architecture, also in the file with all defaults."""
    config = AutoConfig.for_model(
        "modernbert",
        vocab_size=len(AutoTokenizer.from_pretrained(teachers["ru"])),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    )
    teacher = shutil.copytree(teachers["ru"], tmp_path / "modern")
    AutoModelForMaskedLM.from_config(config).save_pretrained(teacher)
    values = recipe_values | {
        "teachers": {"ru": str(teacher)},
        "student": {"init": "teachers"},
        "languages": {"ru": recipe_values["languages"]["ru"]},
    }
    student = run(values, "train") / "student" / "final"
    assert json.loads((student / "config.json").read_text("utf-8"))["model_type"] == "modernbert"
    written = yaml.safe_load((Path(values["output"]) / "recipe.yaml").read_text("utf-8"))
    before = (student / "model.safetensors").stat().st_mtime_ns
    run(written, "train")
    assert (student / "model.safetensors").stat().st_mtime_ns == before
    # As earlier versions wrote it.
    written["student"]["model_type"] = "bert"
    (Path(values["output"]) / "recipe.yaml").write_text(yaml.safe_dump(written, sort_keys=False), "utf-8")
    run(values, "train")
    assert (student / "model.safetensors").stat().st_mtime_ns == before


def test_a_student_of_a_version_that_wrote_bert_is_not_trained_again(recipe_values) -> None:
    config = recipe_values["student"]["config"]
    said = recipe_values | {"student": {"model_type": "bert", "config": config}}
    weights = run(said, "train") / "student" / "final" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    run(recipe_values | {"student": {"config": config}}, "train")
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize("place", ["a file", "under a file"])
def test_an_output_that_cannot_be(recipe_values, tmp_path, place) -> None:
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" if place == "a file" else tmp_path / "file" / "run"
    with pytest.raises(UserError, match="cannot be written"):
        run(recipe_values | {"output": str(output)}, "tokenizer")


def test_a_truncated_checkpoint_and_a_strange_tokenizer(recipe_values, teachers, tmp_path) -> None:
    for name, damage in (
        ("model.safetensors", lambda b: b[:-500]),
        ("tokenizer.json", lambda b: b.replace(b"WordPiece", b"WardPiece")),
    ):
        folder = Path(shutil.copytree(teachers["ru"], tmp_path / name))
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        values = recipe_values | {
            "output": str(tmp_path / f"run-{name}"),
            "teachers": {"ru": str(folder)},
            "languages": {"ru": recipe_values["languages"]["ru"]},
        }
        with pytest.raises(UserError, match=r"teachers\.ru"):
            run(values, "score")
