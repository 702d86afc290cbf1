"""Students that start from a teacher of another architecture."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.models.student import TeacherRows, build_student, start_from_teachers, student_config

ROLES = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def student_of_a_roberta() -> tuple[torch.Tensor, torch.Tensor, bool]:
    """(the teacher's logits, those of the student that starts from it, whether unk's row was copied)."""
    config = AutoConfig.for_model(
        "roberta",
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=42,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
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
