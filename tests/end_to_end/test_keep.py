"""Fine-tuned models that are kept: the best seed on dev, loadable, and with the recorded scores."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tests.finetuning import SMALL, recipe_values, task
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from polydistill.config.load import parse_recipe
from polydistill.pipelines.finetune import training
from polydistill.pipelines.run import run_recipe


def kept_recipe(tmp_path, teachers, **more):
    values = recipe_values(tmp_path, {"one": teachers["en"]}, {"tags": task(tmp_path, "pos")})
    return parse_recipe(
        values | {"keep": "best", "num_seeds": 2, "training": SMALL | {"num_train_epochs": 8}} | more
    )


def test_the_best_seed_on_dev_is_kept_and_loads_as_a_pipeline(tmp_path, teachers) -> None:
    """Its predictions are those that the run scored."""
    run = run_recipe(kept_recipe(tmp_path, teachers))
    folder = run / "models" / "tags" / "one" / "en"
    record = json.loads((folder / "finetuned.json").read_text("utf-8"))
    dev = {
        seed: json.loads((run / "jobs" / "tags" / "one" / f"en-{seed}" / "training.json").read_text("utf-8"))[
            "score"
        ]
        for seed in (0, 1)
    }
    # Of equal ones the first.
    assert record["seed"] == max((0, 1), key=lambda seed: (dev[seed], -seed))
    assert record["dev"] == max(dev.values())
    tagger = pipeline(
        "token-classification",
        model=AutoModelForTokenClassification.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    predictions = run / "jobs" / "tags" / "one" / f"en-{record['seed']}" / "predictions" / "en.jsonl"
    gold = [json.loads(line) for line in predictions.read_text("utf-8").splitlines()]
    source = (
        parse_recipe(yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))).tasks["tags"].data["en"].test
    )
    blocks = Path(source.path).read_text("utf-8").strip().split("\n\n")
    for block, row in zip(blocks, gold, strict=True):
        words = [line.split("\t")[1] for line in block.split("\n")]
        found = {item["start"]: item["entity"] for item in tagger(" ".join(words))}
        starts = [sum(len(word) + 1 for word in words[:index]) for index in range(len(words))]
        assert [found[start] for start in starts] == row["predicted"]
    card = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---")[1])
    assert card["pipeline_tag"] == "token-classification"
    assert card["model-index"][0]["results"][0]["metrics"][0]["value"] == round(
        record["scores"]["en"]["accuracy"], 4
    )
    positions = AutoModelForTokenClassification.from_pretrained(folder).config.max_position_embeddings
    assert AutoTokenizer.from_pretrained(folder).model_max_length <= positions


def test_a_kept_model_that_is_gone_is_told(tmp_path, teachers) -> None:
    """Its job is finished, and has no weights left."""
    recipe = kept_recipe(tmp_path, teachers)
    run = run_recipe(recipe)
    shutil.rmtree(run / "models")
    said: list[str] = []
    run_recipe(recipe, show=said.append)
    assert any("models/tags/one/en is gone; remove jobs/tags/one/en-*" in line for line in said)
    for job in (run / "jobs" / "tags" / "one").iterdir():
        shutil.rmtree(job)
    run_recipe(recipe)
    assert (run / "models" / "tags" / "one" / "en" / "model.safetensors").is_file()


def test_a_crash_before_the_job_ends_keeps_the_model(tmp_path, teachers, monkeypatch) -> None:
    """The checkpoint goes only after the model is kept."""
    recipe = kept_recipe(tmp_path, teachers, num_seeds=1)

    def fail() -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(training, "return_freed_memory", fail)
        with pytest.raises(RuntimeError, match="killed"):
            run_recipe(recipe)
    run = run_recipe(recipe)
    assert (run / "models" / "tags" / "one" / "en" / "model.safetensors").is_file()
    assert not list(run.rglob("checkpoint-*"))


def test_scores_alone_keep_no_weights(tmp_path, teachers) -> None:
    """The default: weights take far more space than scores."""
    run = run_recipe(kept_recipe(tmp_path, teachers, keep="nothing", num_seeds=1))
    assert not list(run.rglob("*.safetensors"))
