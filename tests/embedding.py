"""A small teacher and student of `embed`, and a recipe that distils one into the other."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.conftest import bundled_lines, make_teacher

from polydistill.config.load import parse_recipe
from polydistill.pipelines.run import run_recipe


def make_data(root: Path) -> Path:
    """A teacher and a student of other width and vocabulary, text, translations and test sentences."""
    english, french = bundled_lines("en", 700), bundled_lines("fr", 300)
    make_teacher(root / "teacher", english, seed=1)
    make_teacher(root / "narrow", english + french, seed=2, size=300, num_layers=1)
    # A student of 32 numbers learns vectors of 8.
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Norm")]
    (root / "teacher/modules.json").write_text(
        json.dumps(
            [{"type": f"sentence_transformers.models.{name}", "path": path} for name, path in modules]
        ),
        "utf-8",
    )
    (root / "teacher/1_Pooling").mkdir()
    (root / "teacher/1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}', "utf-8")
    (root / "teacher/2_Dense").mkdir()
    (root / "teacher/2_Dense/config.json").write_text(
        '{"activation_function": "torch.nn.modules.activation.Tanh"}', "utf-8"
    )
    torch.manual_seed(9)
    weights = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    save_file(weights, root / "teacher/2_Dense/model.safetensors")
    (root / "en.txt").write_text("\n".join(english[:500]), "utf-8")
    pairs = [f"{one}\t{other}" for one, other in zip(english[500:620], french, strict=False)]
    (root / "pairs.tsv").write_text("\n".join(pairs), "utf-8")
    (root / "test.en.txt").write_text("\n".join(english[620:640]), "utf-8")
    (root / "test.fr.txt").write_text("\n".join(french[-20:]), "utf-8")
    rows = [f"{english[i]}\t{english[i + 1]}\t{i % 5}.5" for i in range(650, 690)]
    (root / "sts.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]), "utf-8")
    return root


def recipe_of(data: Path, output: Path, **changes: object) -> dict:
    return {
        "recipe": "embed",
        "name": "small",
        "output": str(output),
        "teacher": str(data / "teacher"),
        "student": str(data / "narrow"),
        "languages": {"en": {"text": str(data / "en.txt")}, "fr": {"translations": str(data / "pairs.tsv")}},
        "sentences": {"max_length": 32, "held_out_share": 0.1},
        "training": {
            "max_steps": 100,
            "per_device_train_batch_size": 16,
            "learning_rate": 5e-3,
            "logging_steps": 10,
            "save_steps": 20,
            "bf16": False,
            "report_to": [],
        },
        "vectors": {"precision": "float32"},
        "evaluation": {
            "retrieval": {
                "pair": {"files": {"en": str(data / "test.en.txt"), "fr": str(data / "test.fr.txt")}}
            },
            "similarity": {"sts": str(data / "sts.tsv")},
        },
    } | changes


def run(values: dict) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return run_recipe(parse_recipe(values), show=lines.append), lines
