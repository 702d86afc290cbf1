"""Pre-training from text, and the vocabulary commands, as processes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.end_to_end.test_merge import polydistill, write_recipe
from transformers import AutoTokenizer


def pretrain_recipe(texts: dict, output: Path) -> dict:
    return {
        "recipe": "pretrain",
        "name": "both",
        "output": str(output),
        "languages": {"en": {"text": str(texts["en"])}, "ru": {"text": str(texts["ru"])}},
        "corpora": {"max_length": 32, "block_lines": 16, "held_out_share": 0.1},
        "tokenizer": {"size": 500},
        "model": {
            "model_type": "modernbert",
            "config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 64,
            },
        },
        "training": {
            "max_steps": 60,
            "per_device_train_batch_size": 16,
            "learning_rate": 5e-3,
            "bf16": False,
        },
        "evaluation": {"max_examples": 50, "precision": "float32"},
    }


def test_pretraining_learns_and_repeats_its_bytes(tmp_path, texts) -> None:
    finals = []
    for name in ("one", "two"):
        done = polydistill("pretrain", write_recipe(tmp_path, pretrain_recipe(texts, tmp_path / name)))
        assert done.returncode == 0, done.stderr
        assert "unigram" in done.stdout
        finals.append(tmp_path / name / "student" / "final")
    for file in ("model.safetensors", "tokenizer.json", "README.md"):
        assert (finals[0] / file).read_bytes() == (finals[1] / file).read_bytes(), file
    measured = json.loads((tmp_path / "one" / "evaluation" / "mlm.json").read_text("utf-8"))["languages"]
    assert f"{measured['ru'][0]['mrr']:.3f}" in (finals[0] / "README.md").read_text("utf-8")
    log = json.loads((tmp_path / "one" / "student" / "log.json").read_text("utf-8"))["log"]
    losses = [entry["mlm_loss"] for entry in log if "mlm_loss" in entry]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3
    tokenizer = AutoTokenizer.from_pretrained(finals[0])
    assert len(tokenizer) <= 500
    assert tokenizer("The House!")["input_ids"] == tokenizer("the house!")["input_ids"]
    # A missing model is made again. Its card has the results, which still exist.
    card = (finals[1] / "README.md").read_bytes()
    shutil.rmtree(finals[1])
    again = polydistill("pretrain", write_recipe(tmp_path, pretrain_recipe(texts, tmp_path / "two")))
    assert again.returncode == 0, again.stderr
    assert (finals[1] / "README.md").read_bytes() == card
    page = (tmp_path / "one" / "report" / "index.html").read_text("utf-8")
    for language in ("en", "ru"):
        row = measured[language][0]
        assert f'<td>{language}</td><td>held_out</td><td class="n">{row["mrr"]:.3f} ' in page
        assert f"{language}: MRR" in page
    assert page.count("<svg") == 2
    assert "modernbert pre-trained on 2 languages · 500 pieces" in page


def test_vocabulary_commands(tmp_path, teachers) -> None:
    shown = polydistill("vocab", "inspect", str(teachers["en"]))
    assert shown.returncode == 0, shown.stderr
    assert "wordpiece" in shown.stdout
    united = polydistill(
        "vocab", "union", str(teachers["en"]), str(teachers["ru"]), "--output", str(tmp_path / "u")
    )
    assert united.returncode == 0, united.stderr
    union = AutoTokenizer.from_pretrained(tmp_path / "u")
    own = AutoTokenizer.from_pretrained(tmp_path / "u" / "tokenizer" / "1-ru")
    mapping = np.array(json.loads((tmp_path / "u/tokenizer/1-ru/map.json").read_text()))
    original = AutoTokenizer.from_pretrained(teachers["ru"])
    text = "как пройти в метро"
    assert own(text)["input_ids"] == mapping[original(text)["input_ids"]].tolist()
    assert len(union) > mapping.max()
    missing = polydistill("vocab", "inspect", str(tmp_path / "nothing"))
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr


@pytest.mark.slow
def test_profile_says_where_a_step_goes_and_keeps_nothing_of_it(
    tmp_path, texts, recipe_values, extract_values
) -> None:
    """For every kind of training: the parts add up to the step, and no student or checkpoint remains."""
    merge = Path(recipe_values["output"])
    alone = tmp_path / "alone"
    extract = extract_values | {"output": str(tmp_path / "extract")}
    recipes = (
        (recipe_values, merge),
        (pretrain_recipe(texts, alone), alone),
        (extract, tmp_path / "extract"),
    )
    for recipe, folder in recipes:
        done = polydistill("train", write_recipe(tmp_path, recipe), "--profile")
        assert done.returncode == 0, done.stderr
        assert "waiting for a batch" in done.stdout
        profile = json.loads((folder / "profile" / "profile.json").read_text("utf-8"))
        assert sum(profile["parts"].values()) == pytest.approx(profile["step"])
        for part in (
            "encoder, forward",
            "encoder, backward",
            "output layer, loss and their gradients",
            "optimizer",
        ):
            assert 0 < profile["parts"][part] < profile["step"], part
        assert 0 < profile["products_share"] < 1
        trace = json.loads((folder / "profile" / "trace.json").read_text("utf-8"))
        assert trace["traceEvents"]
        assert not (folder / "student").exists()
