"""Fine-tuning: its loss, its arguments, and when it ends."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests.finetuning import coder, recipe_values, task
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from polydistill.config.load import parse_recipe
from polydistill.errors import NumericsError
from polydistill.pipelines.finetune.jobs import all_jobs
from polydistill.tasks.heads import collate, load_with_head
from polydistill.tasks.labelled import LabelledText
from polydistill.tasks.splits import read_tasks
from polydistill.tasks.training import fine_tune
from polydistill.training.arguments import check_finetuning


def in_batches_of_two(epochs):
    """Arguments of a training in batches of two."""
    return check_finetuning(
        {
            "learning_rate": 1e-3,
            "num_train_epochs": epochs,
            "warmup_steps": 0.1,
            "per_device_train_batch_size": 2,
            "bf16": False,
        }
    )


def pairs_model(teachers):
    return load_with_head(str(teachers["en"]), "pairs", num_labels=2, seed=0)


def tune(model, features, folder, arguments, *, measure, say):
    """Fine-tune with one measurement an epoch, until two bring nothing."""
    return fine_tune(
        model,
        features,
        folder=folder,
        arguments=arguments,
        measure=measure,
        patience=2,
        evaluations_per_epoch=1,
        max_length=32,
        pad_id=0,
        seed=0,
        say=say,
    )


def test_a_batch_has_the_loss_that_transformers_gives_each_text(teachers) -> None:
    model = load_with_head(str(teachers["en"]), "pairs", num_labels=2, seed=3).eval()
    reader = coder("pairs", teachers["en"], ["no", "yes"])
    made = reader.encode(
        [LabelledText(("the house", "of that"), "yes"), LabelledText(("the", "was with him"), "no")]
    )
    loss = model(**collate(made, pad_id=0)).loss
    plain = AutoModelForSequenceClassification.from_pretrained(teachers["en"], num_labels=2).eval()
    plain.load_state_dict(model.state_dict())
    fast = AutoTokenizer.from_pretrained(teachers["en"])
    each = []
    for first, second, label in (("the house", "of that", 1), ("the", "was with him", 0)):
        batch = fast(first, second, return_tensors="pt")
        types = torch.tensor([reader.encode([LabelledText((first, second), "no")])[0]["token_type_ids"]])
        each.append(plain(**{**batch, "token_type_ids": types}, labels=torch.tensor([label])).loss)
    assert float(loss.detach()) == pytest.approx(float(sum(each).detach()) / 2, abs=1e-5)


def test_a_preset_s_warm_up_that_a_small_set_would_never_leave_is_cut(tmp_path, teachers) -> None:
    values = recipe_values(
        tmp_path, {"one": teachers["en"]}, {"tags": task(tmp_path, "pos")}, preset="eliquare"
    )
    values["training"] = {"bf16": False}
    recipe = parse_recipe(values)
    job = all_jobs(recipe, read_tasks(recipe))[0]
    arguments, said = job.arguments(320)
    assert arguments["warmup_steps"] == 0.1
    assert said == "500 steps of warm-up are too many for a training of 50: 10% of them instead"
    assert job.arguments(32 * 400)[0]["warmup_steps"] == 500
    values["training"]["warmup_steps"] = 500
    recipe = parse_recipe(values)
    own = all_jobs(recipe, read_tasks(recipe))[0]
    assert own.arguments(320) == (job.recipe_arguments, None)
    # It is another training, though the merged arguments are equal.
    assert own.inputs != job.inputs


def test_training_stops_when_the_dev_set_says_so_and_names_the_best_checkpoint(tmp_path, teachers) -> None:
    """Scores by hand: the second is the best, two without a better one end it; an equal one is no better."""
    scores = iter([0.1, 0.9, 0.9, 0.2, 1.0])
    reader = coder("pairs", teachers["en"], ["no", "yes"])
    made = reader.encode([LabelledText(("the house", "of that"), "yes")] * 4)
    arguments = in_batches_of_two(5)
    said: list[str] = []

    def tuned() -> dict:
        return tune(
            pairs_model(teachers),
            made,
            tmp_path,
            arguments,
            measure=lambda model: next(scores),
            say=said.append,
        )

    record = tuned()
    assert (record["best"], record["score"], record["steps"], record["max_steps"]) == (
        "checkpoint-4",
        0.9,
        8,
        10,
    )
    assert (tmp_path / "checkpoint-4" / "complete.json").is_file()
    assert len(said) == 4
    # Killed before this was recorded, training does not continue: the fifth measurement would be better.
    assert tuned() == record
    assert next(scores) == 1.0


def test_patience_begins_with_the_first_score(tmp_path, teachers) -> None:
    """Entity F1 is 0 for a while: that does not mean that learning has ended."""
    scores = iter([0.0, 0.0, 0.0, 0.4, 0.3, 0.3])
    reader = coder("pairs", teachers["en"], ["no", "yes"])
    made = reader.encode([LabelledText(("the house", "of that"), "yes")] * 2)
    arguments = in_batches_of_two(9)
    record = tune(
        pairs_model(teachers), made, tmp_path, arguments, measure=lambda model: next(scores), say=print
    )
    assert (record["score"], record["step"], record["steps"]) == (0.4, 4, 6)


def test_a_fine_tuning_whose_loss_is_not_finite_stops_and_keeps_its_batch(tmp_path, teachers) -> None:
    reader = coder("pairs", teachers["en"], ["no", "yes"])
    made = reader.encode([LabelledText(("the house", "of that"), "yes")] * 4)
    model = pairs_model(teachers)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    arguments = in_batches_of_two(1)
    with pytest.raises(NumericsError, match="the loss is nan at step 0; that batch"):
        tune(model, made, tmp_path / "checkpoints", arguments, measure=lambda model: 0.0, say=print)
    batch = load_file(tmp_path / "nonfinite-step-0" / "batch-0.safetensors")
    assert batch["input_ids"][0].tolist() == made[0]["input_ids"]
    assert batch["labels"].tolist() == [made[0]["labels"]] * 2
