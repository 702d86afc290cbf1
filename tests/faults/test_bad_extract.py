"""Users' mistakes in an extraction: a message with field, value and remedy, from `run` and from `plan`."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AlbertConfig, AlbertForMaskedLM

from polydistill.config.load import parse_recipe
from polydistill.disk import write_json
from polydistill.errors import UserError
from polydistill.pipelines.plan import plan_recipe
from polydistill.pipelines.run import run_recipe


def refusals(values: dict) -> dict[str, str]:
    """The messages of `run` and `plan` for a recipe that cannot run; nothing is trained."""
    with pytest.raises(UserError) as caught:
        run_recipe(parse_recipe(values), until="train", show=lambda line: None)
    console = Console(record=True, width=400, file=io.StringIO())
    conflicts = plan_recipe(parse_recipe(values), (), console)
    assert not (Path(values["output"]) / "student" / "final").exists()
    assert any(conflict.level == "error" for conflict in conflicts)
    return {
        "run": str(caught.value),
        "plan": "\n".join(f"{conflict.what}; {conflict.remedy}" for conflict in conflicts),
    }


def lacking(values: dict, *wanted: str) -> list[tuple[str, str]]:
    """(command, part) of each expected part that is missing from a command's message."""
    return [
        (command, part) for command, said in refusals(values).items() for part in wanted if part not in said
    ]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"student": {"num_layers": 5}}, ["student.num_layers 5", "the teacher has 4 layers"]),
        ({"student": {"init": [0, 4]}}, ["no layer 4", "from 0 to 3"]),
        (
            {"student": {"init": "random", "config": {"hidden_size": 16}}},
            ["losses.cosine", "hidden size is 16 and the teacher's 32", "losses.cosine: 0"],
        ),
        ({"student": {"hidden_size": 20}}, ["student.hidden_size 20", "multiple of 16", "give 16 or 32"]),
        ({"student": {"intermediate_size": 999}}, ["student.intermediate_size 999", "the teacher has 64"]),
        (
            {"student": {"hidden_size": 16, "config": {"hidden_size": 16}}},
            ["student.config.hidden_size 16", "give it once"],
        ),
        ({"student": {"config": {"hidden_size": 16}}}, ["student.config", "init: random"]),
        ({"student": {"config": {"hiden_size": 16}}}, ["student.config.hiden_size", "no such configuration"]),
        ({"losses": {"relation": 1, "relation_heads": 5}}, ["losses.relation_heads 5", "does not divide"]),
        ({"trim": {"size": 20}}, ["trim.size 20", "characters, so that no text becomes unknown", "or more"]),
        ({"corpora": {"max_length": 128}}, ["corpora.max_length 128", "at most 64 tokens"]),
        ({"text": "nowhere.txt"}, ["text[0] 'nowhere.txt'", "no such file"]),
        ({"adapt": {"max_steps": 5}, "text": "nowhere.txt"}, ["text[0] 'nowhere.txt'"]),
        ({"teacher": "nowhere/at-all"}, ["teacher 'nowhere/at-all'", "cannot be loaded"]),
    ],
)
def test_refusals(extract_values, change, wanted) -> None:
    assert lacking(extract_values | change, *wanted) == []


def copy_of(teacher: Path, folder: Path) -> tuple[Path, dict]:
    shutil.copytree(teacher, folder)
    return folder, json.loads((folder / "config.json").read_text("utf-8"))


def test_albert_shares_its_layers(extract_values, multilingual_teacher, tmp_path) -> None:
    folder, config = copy_of(multilingual_teacher, tmp_path / "albert")
    AlbertForMaskedLM(
        AlbertConfig(
            vocab_size=config["vocab_size"],
            hidden_size=32,
            embedding_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)
    values = extract_values | {"teacher": str(folder)}
    assert lacking(values, "teacher", "albert shares one layer", "vocab trim") == []


def test_electras_discriminator(extract_values, multilingual_teacher, tmp_path) -> None:
    folder, config = copy_of(multilingual_teacher, tmp_path / "electra")
    changed = {"model_type": "electra", "architectures": ["ElectraForPreTraining"], "embedding_size": 32}
    write_json(folder / "config.json", config | changed)
    assert lacking(extract_values | {"teacher": str(folder)}, "discriminator", "generator") == []


def test_a_teacher_without_a_head(extract_values, multilingual_teacher, tmp_path) -> None:
    folder, _ = copy_of(multilingual_teacher, tmp_path / "headless")
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("cls.")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    values = extract_values | {"teacher": str(folder)}
    assert lacking(values, "teacher", "lacks weights", "cls.predictions") == []


@pytest.mark.parametrize(
    ("adapt", "wanted"),
    [
        ({"max_steps": 0}, ["adapt.max_steps 0", "not a positive whole number"]),
        ({"learning_rat": 1e-4}, ["adapt.learning_rat", "did you mean 'learning_rate'"]),
        ({"learning_rate": "much"}, ["adapt.learning_rate 'much'", "not a number"]),
        ({"per_device_train_batch_size": 0}, ["adapt.per_device_train_batch_size 0"]),
        ({"output_dir": "x"}, ["adapt.output_dir", "set by the run itself"]),
    ],
)
def test_arguments_of_the_teachers_own_training(extract_values, adapt, wanted) -> None:
    values = parse_recipe(extract_values | {"adapt": adapt})
    with pytest.raises(UserError) as run:
        run_recipe(values, show=lambda line: None)
    with pytest.raises(UserError) as plan:
        plan_recipe(values, (), Console(file=io.StringIO()))
    assert str(run.value) == str(plan.value)
    assert [part for part in wanted if part not in str(run.value)] == []


def plan_cost(values: dict) -> str:
    console = Console(record=True, width=400, file=io.StringIO())
    assert plan_recipe(parse_recipe(values), (), console) == []
    return console.export_text()


def test_plan_of_what_can_run(extract_values) -> None:
    console = Console(record=True, width=400, file=io.StringIO())
    assert plan_recipe(parse_recipe(extract_values), (), console) == []
    shown = console.export_text()
    for wanted in ("student: 2 layers", "teacher: 4 layers, 700 pieces", "train 6 steps", "no conflicts"):
        assert wanted in shown
    measured = plan_cost(extract_values | {"cost": {"rounds": 3, "shapes": [[1, 8], [2, 8]]}})
    # Two models, two shapes, with and without the head, three times.
    assert "cost: 24 fresh processes, about 4:0" in measured
    assert "cost:" not in plan_cost(extract_values | {"cost": {"rounds": 0}})
    assert "adapt " not in measured
    assert "importance" not in measured
    narrower = plan_cost(extract_values | {"student": {"hidden_size": 16}})
    assert "importance of the teacher's parts on 256 examples: " in narrower
    # 16 of 32 dimensions, 2 of 4 layers: pieces x 16 of embeddings.
    sizes = dict(re.findall(r"(teacher|student): .* ([\d,]+) of them embeddings", narrower))
    rows = dict(re.findall(r"(teacher|student): \d layers, ([\d,]+) pieces", narrower))
    assert int(sizes["teacher"].replace(",", "")) == 32 * int(rows["teacher"])
    assert int(sizes["student"].replace(",", "")) == 16 * int(rows["student"])
    assert "adapt 40 steps: " in plan_cost(extract_values | {"adapt": {"max_steps": 40}})
    assert not Path(extract_values["output"]).exists()


def test_plan_of_stored_predictions_says_what_the_store_takes(extract_values) -> None:
    console = Console(record=True, width=400, file=io.StringIO())
    values = extract_values | {"losses": {"predictions": "stored"}}
    assert plan_recipe(parse_recipe(values), (), console) == []
    shown = console.export_text()
    assert "% of ru: " in shown
    assert "store of " in shown
