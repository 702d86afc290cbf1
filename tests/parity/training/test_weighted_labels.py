"""Training an extraction's student on stored predictions: what it minimises."""

from itertools import islice

import numpy as np
import pytest
import torch
from tests.training import Rows, make_model, short_training

from polydistill.config.extract import Losses
from polydistill.training.data import collate, expected_size
from polydistill.training.objectives import WeightedLabels
from polydistill.training.run import train
from polydistill.training.sampler import LanguageSampler

ROWS = Rows(40, 1)


def trained(folder, losses, *, steps=1):
    values = short_training(steps)
    chosen = Losses.model_validate({"predictions": "stored"} | losses)
    return train(
        make_model(),
        {"a": ROWS},
        [1.0],
        folder=folder,
        arguments=values,
        objective=WeightedLabels(chosen, "a"),
        pad_id=0,
        max_length=64,
        seed=7,
        say=lambda line: None,
    )


@pytest.mark.parametrize("tail", ["renormalise", "bucket", "raw"])
def test_the_first_loss_is_the_dense_formula(tmp_path, tail) -> None:
    log = trained(tmp_path, {"kd": 5, "mlm": 2, "tail": tail})
    sampler = LanguageSampler([ROWS.lengths], [1.0], batch_size=8, num_batches=1, seed=7)
    batch = collate([ROWS.example(row, epoch, language) for language, row, epoch in sampler], 0)
    with torch.no_grad():
        logits = (
            make_model().eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        )
    logprobs = logits.flatten(0, 1)[batch["positions"]].double().log_softmax(-1).numpy()
    probabilities = np.exp(batch["logprobs"].double().numpy())
    rest = 1 - probabilities.sum(1)
    kd = 0.0
    for row, ids in enumerate(batch["ids"][:, 1:].numpy()):
        scale = 1 / probabilities[row].sum() if tail == "renormalise" else 1
        kd -= scale * (probabilities[row] * logprobs[row, ids]).sum()
        if tail == "bucket":
            kd -= rest[row] * np.log(1 - np.exp(logprobs[row, ids]).sum())
    count = len(logprobs)
    mlm = -logprobs[np.arange(count), batch["ids"][:, 0]].sum()
    assert log[0]["kd_loss"] == pytest.approx(kd / count, abs=1e-4)
    assert log[0]["mlm_loss"] == pytest.approx(mlm / count, abs=1e-4)
    masked = expected_size([ROWS], [1.0], 8).masked
    assert log[0]["loss"] == pytest.approx((5 * kd + 2 * mlm) / masked, abs=2e-3)


def test_each_weight_follows_its_schedule(tmp_path) -> None:
    log = trained(tmp_path, {"kd": {"first": 4, "last": 0}, "mlm": 1}, steps=3)
    assert [entry["kd_weight"] for entry in log[:3]] == [2.0, 0.0, 0.0]
    sampler = iter(LanguageSampler([ROWS.lengths], [1.0], batch_size=8, num_batches=3, seed=7))
    masked = expected_size([ROWS], [1.0], 8).masked
    for entry, weight in zip(log[:3], (4.0, 2.0, 0.0), strict=True):
        count = sum(len(ROWS.example(row, 0, 0).positions) for _, row, _ in islice(sampler, 8))
        wanted = (weight * entry["kd_loss"] + entry["mlm_loss"]) * count / masked
        assert entry["loss"] == pytest.approx(wanted, abs=2e-3)
