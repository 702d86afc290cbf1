"""Bugs that a review found, each mended and kept away."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.config import parse_recipe
from polydistill.errors import UserError
from polydistill.models import TeacherRows, build_student, start_from_teachers, student_config
from polydistill.models.features import masked_features
from polydistill.recipes import run_recipe
from polydistill.tokenization import load_tokenizer, unite

ROLES = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def run(values: dict, until: str, *, update: bool = False) -> Path:
    return run_recipe(parse_recipe(values), until=until, update=update, show=lambda line: None)


def test_a_typo_that_is_mended_needs_no_update(recipe_values) -> None:
    right = recipe_values["teachers"]["en"]
    recipe_values["teachers"]["en"] = "/nowhere/typo"
    with pytest.raises(UserError, match="cannot be loaded"):
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


def student_of_a_roberta() -> tuple[torch.Tensor, torch.Tensor, bool]:
    """(the teacher's logits, those of the student that starts from it, whether the row of unk came along)."""
    config = AutoConfig.for_model(
        "roberta", vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=42, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    teacher = AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    mapping = np.arange(60)
    mapping[[1, 3, 0, 2, 4]] = np.arange(5)
    made = student_config("roberta", {}, vocabulary_size=60, special_ids=ROLES, max_length=40, base=config)
    student = build_student(made, seed=1).eval()
    start_from_teachers(
        student,
        [
            TeacherRows(
                "t", teacher, mapping, np.arange(5, 60), {"pad": 1, "unk": 3, "cls": 0, "sep": 2, "mask": 4}
            )
        ],
        row_map="mean",
        seed=0,
    )
    ids = np.array([[0, 10, 11, 4, 13, 2]])
    seen = torch.ones(1, 6, dtype=torch.long)
    with torch.no_grad():
        said = teacher(input_ids=torch.from_numpy(ids), attention_mask=seen).logits[0, :, 5:]
        says = student(input_ids=torch.from_numpy(mapping[ids]), attention_mask=seen).logits[0, :, 5:]
    rows, source = student.get_input_embeddings().weight, teacher.get_input_embeddings().weight
    return said, says, bool(torch.equal(rows[ROLES["unk"]], source[3]))


def test_a_student_of_a_roberta_predicts_what_it_predicts() -> None:
    said, says, _ = student_of_a_roberta()
    torch.testing.assert_close(says, said)


def test_the_row_of_unk_comes_from_the_teacher() -> None:
    assert student_of_a_roberta()[2]


def test_features_of_a_model_in_a_parallel_wrapper() -> None:
    config = AutoConfig.for_model(
        "bert",
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
    )
    inner = AutoModelForMaskedLM.from_config(config)
    inputs = {"input_ids": torch.full((1, 8), 7), "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    assert masked_features(torch.nn.DataParallel(inner), inputs, torch.tensor([1])).shape == (1, 32)
