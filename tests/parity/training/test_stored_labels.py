"""The training loop: batches, accumulation, resuming, and what it minimises."""

import gc
import json
import math
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests import training
from tests.training import Rows, SameOrder, difference, first_batch, make_model, step_size, stop_at, trained
from transformers import AutoModelForMaskedLM

from polydistill.config.shared import Distillation
from polydistill.errors import NumericsError
from polydistill.losses.targets import soft_targets
from polydistill.models.attention import attention_for
from polydistill.training.checkpoints import last_checkpoint
from polydistill.training.sampler import LanguageSampler
from polydistill.training.trainer import DistillationTrainer


@pytest.mark.parametrize("tail", ["renormalise", "bucket", "raw", "gold"])
def test_the_first_loss_is_the_dense_formula(tmp_path, tail) -> None:
    """lambda * KD + (1 - lambda) * MLM, divided by a step's mean number of masked tokens, from the whole
    model's logits.
    """
    settings = Distillation(teacher_weight=0.3, final_teacher_weight=0.3, tail=tail)
    _, log = trained(tmp_path, steps=1, distillation=settings)
    batch, logprobs = first_batch()
    mlm = -logprobs.gather(1, batch["ids"][:, :1])[:, 0]
    stored, top = batch["logprobs"].exp(), logprobs.gather(1, batch["ids"][:, 1:])
    rest = 1 - stored.sum(-1)
    kd = -(stored * top).sum(-1)
    if tail == "renormalise":
        kd = kd / stored.sum(-1)
    elif tail == "bucket":
        others = logprobs.scatter(1, batch["ids"][:, 1:], -torch.inf).logsumexp(-1)
        kd = kd - rest * others
    # The logged KD leaves out the gold piece's share of the tail.
    logged = kd.mean().item()
    if tail == "gold":
        kd = kd + rest * mlm
    assert log[0]["mlm_loss"] == pytest.approx(mlm.mean().item(), abs=1e-4)
    assert log[0]["kd_loss"] == pytest.approx(logged, abs=1e-4)
    assert log[0]["loss"] == pytest.approx((0.3 * kd + 0.7 * mlm).sum().item() / step_size().masked, abs=1e-3)


def test_a_language_with_labels_of_its_own(tmp_path) -> None:
    """Language a learns from its teacher alone, b from its text alone, whatever the schedule is."""
    _, log = trained(tmp_path, steps=1, labels={"a": "soft", "b": "gold"})
    batch, logprobs = first_batch()
    mlm = -logprobs.gather(1, batch["ids"][:, :1])[:, 0]
    soft, _ = soft_targets(batch["logprobs"], tail="renormalise")
    kd = -(soft * logprobs.gather(1, batch["ids"][:, 1:])).sum(-1)
    first = batch["language"] == 0
    assert log[0]["loss_a"] == pytest.approx(kd[first].mean().item(), abs=1e-4)
    assert log[0]["loss_b"] == pytest.approx(mlm[~first].mean().item(), abs=1e-4)
    assert log[0]["loss"] == pytest.approx(
        torch.where(first, kd, mlm).sum().item() / step_size().masked, abs=1e-3
    )


def test_lambda_arrives_early_where_it_is_told_to(tmp_path) -> None:
    _, log = trained(
        tmp_path, steps=9, distillation=Distillation(annealing_share=0.5, final_teacher_weight=0.2)
    )
    weights = [entry["teacher_weight"] for entry in log if "teacher_weight" in entry]
    assert weights[:3] == [pytest.approx(0.8), pytest.approx(0.6), pytest.approx(0.4)]
    assert weights[3:] == [pytest.approx(0.2)] * 6


def test_accumulation_changes_nothing(tmp_path) -> None:
    """Two micro-batches of 8 equal one batch with the same 16 examples, despite different numbers of masked
    tokens.
    """

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydistill.training.run.LanguageSampler", SameOrder)
        whole, _ = trained(tmp_path / "a", per_device_train_batch_size=16, optim="sgd", max_grad_norm=0)
        parts, _ = trained(tmp_path / "b", gradient_accumulation_steps=2, optim="sgd", max_grad_norm=0)
    assert difference(whole, parts) < 1e-5
    assert difference(whole, make_model()) > 1e-3


def test_attention_of_short_sequences_is_the_same_computation(tmp_path) -> None:
    """On a CPU, the plain products for short sequences train to the same result as torch's own kernel."""
    import contextlib

    plain, log = trained(tmp_path / "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydistill.training.run.attention_for", lambda *_: contextlib.nullcontext())
        other, _ = trained(tmp_path / "b")
    assert difference(plain, other) < 1e-4
    assert all(0.0 <= entry["waiting_share"] <= 1.0 for entry in log if "mlm_loss" in entry)


def test_which_attention_for_which_length() -> None:
    """Plain products for short sequences on a CPU; torch's own choice for long ones and on a GPU."""
    from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

    everything = set(_cur_sdpa_kernel_backends())
    for length in (64, 128):
        with attention_for(torch.device("cpu"), length):
            assert _cur_sdpa_kernel_backends() == [SDPBackend.MATH]
    for device, length in (("cpu", 129), ("cuda", 64)):
        with attention_for(torch.device(device), length):
            assert set(_cur_sdpa_kernel_backends()) == everything


def test_resuming_gives_the_same_weights(tmp_path) -> None:
    """A run that stops at a checkpoint and resumes ends with the same bytes as one that does not stop."""
    whole, _ = trained(tmp_path / "a", steps=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydistill.training.trainer.DistillationTrainer.check", stop_at(8))
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "b", steps=12, save_steps=5)
    assert (tmp_path / "b" / "checkpoint-5" / "complete.json").is_file()
    resumed, log = trained(tmp_path / "b", steps=12, save_steps=5)
    assert difference(whole, resumed) == 0.0
    assert [entry["step"] for entry in log if "mlm_loss" in entry] == list(range(1, 13))


def test_lambda_goes_down_and_gold_only_ignores_the_teacher(tmp_path) -> None:
    _, log = trained(tmp_path / "a", steps=10)
    weights = [entry["teacher_weight"] for entry in log if "teacher_weight" in entry]
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == pytest.approx(0.0)
    gold, log = trained(tmp_path / "b", steps=3, distillation=Distillation(labels="gold"))
    count = len(first_batch()[0]["positions"])
    assert log[0]["loss"] == pytest.approx(log[0]["mlm_loss"] * count / step_size().masked, abs=1e-3)
    assert "teacher_weight" not in log[0]
    soft, log = trained(tmp_path / "c", steps=3, distillation=Distillation(labels="soft"))
    assert log[0]["loss"] == pytest.approx(log[0]["kd_loss"] * count / step_size().masked, abs=1e-3)
    assert difference(gold, soft) > 1e-3


@pytest.mark.parametrize("tail", ["renormalise", "bucket", "raw", "gold"])
def test_every_reading_of_the_tail_trains(tmp_path, tail) -> None:
    _, log = trained(tmp_path, steps=96, distillation=Distillation(tail=tail, labels="soft"))
    losses = [entry["loss"] for entry in log if "mlm_loss" in entry]
    assert all(math.isfinite(loss) for loss in losses)
    assert np.mean(losses[-16:]) < np.mean(losses[:16])


def test_a_trainer_is_gone_when_its_training_is_over(tmp_path, monkeypatch) -> None:
    """With its optimizer: two moments of every weight. A collector may run much later, or not before memory
    is out.
    """
    seen = []

    def make(**arguments):
        trainer = DistillationTrainer(**arguments)
        seen.append(weakref.ref(trainer))
        return trainer

    gc.collect()
    gc.disable()
    try:
        monkeypatch.setattr("polydistill.training.run.DistillationTrainer", make)
        trained(tmp_path, steps=2)
        assert len(seen) == 1
        assert seen[0]() is None
    finally:
        gc.enable()


def test_a_loss_that_is_not_finite_stops_training(tmp_path) -> None:
    """The failing batch is saved with the weights, and its examples are named as their source names them."""
    with pytest.raises(
        NumericsError, match=r"the loss is \S+ at step \d+ \(languages a, b: language "
    ) as caught:
        trained(tmp_path / "checkpoints", steps=30, learning_rate=1e30, optim="sgd", max_grad_norm=0)
    (folder,) = tmp_path.glob("nonfinite-step-*")
    assert str(folder) in str(caught.value)
    said = json.loads((folder / "batch.json").read_text("utf-8"))
    expected = list(
        LanguageSampler(
            [Rows(40, 1).lengths, Rows(10, 2).lengths], [0.75, 0.25], batch_size=8, num_batches=30, seed=7
        )
    )[8 * said["step"] :][:8]
    assert [(example["language"], example["example"], example["epoch"]) for example in said["examples"]] == [
        ("ab"[language], 1000 * (language + 1) + row, epoch) for language, row, epoch in expected
    ]
    batch = load_file(folder / "batch-0.safetensors")
    assert batch["keys"].tolist() == [list(key) for key in expected]
    model = AutoModelForMaskedLM.from_pretrained(folder)
    loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.sum()
    assert not torch.isfinite(loss)


@pytest.mark.parametrize("max_grad_norm", [0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_training_before_it_is_taken(
    tmp_path, monkeypatch, value, max_grad_norm
) -> None:
    """The loss is finite until the optimizer has applied such a gradient; then the weights and a checkpoint
    have it.
    """
    model, steps = make_model(), []

    def poisoned(gradient):
        steps.append(len(steps))
        return torch.full_like(gradient, value) if len(steps) == 4 else gradient

    model.bert.embeddings.word_embeddings.weight.register_hook(poisoned)
    monkeypatch.setattr(training, "make_model", lambda: model)
    with pytest.raises(NumericsError, match="a gradient is not finite at step 3"):
        trained(tmp_path / "checkpoints", steps=6, save_steps=1, max_grad_norm=max_grad_norm)
    saved = load_file(tmp_path / "nonfinite-step-3" / "model.safetensors")
    assert all(bool(torch.isfinite(weight).all()) for weight in saved.values())
    assert last_checkpoint(tmp_path / "checkpoints").name == "checkpoint-3"
