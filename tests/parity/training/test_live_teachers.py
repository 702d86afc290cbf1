"""Training with a teacher for each language, and early stopping: what is minimised, what is kept."""

import pytest
import torch
from tests.training import SMALL, Rows, difference, make_model, short_training, stop_at
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.config.shared import Distillation
from polydistill.errors import RunFolderError
from polydistill.training.data import collate, expected_size
from polydistill.training.objectives import LiveTeachers, StoredLabels
from polydistill.training.run import EarlyStopping, train
from polydistill.training.sampler import LanguageSampler
from polydistill.training.trainer import DistillationTrainer

ROWS = {"a": Rows(40, 1, teacher=False), "b": Rows(30, 2, teacher=False)}


def make_teacher(seed):
    torch.manual_seed(seed)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SMALL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def trained(
    folder, *, steps=1, labels="soft", weight=1.0, temperature=1.0, stopping=None, teachers=True, **arguments
):
    model = make_model()
    values = short_training(steps, **arguments)
    settings = Distillation(labels=labels, teacher_weight=weight, schedule="constant")
    objective = StoredLabels(settings, list(ROWS))
    if teachers:
        objective = LiveTeachers(
            settings,
            list(ROWS),
            teachers=[make_teacher(5), make_teacher(6)],
            temperature=temperature,
            dtype=torch.float32,
        )
    log = train(
        model,
        ROWS,
        [0.5, 0.5],
        folder=folder,
        arguments=values,
        pad_id=0,
        max_length=64,
        seed=7,
        objective=objective,
        say=lambda line: None,
        stopping=stopping,
    )
    return model, log


def first_batch():
    sampler = LanguageSampler(
        [rows.lengths for rows in ROWS.values()], [0.5, 0.5], batch_size=8, num_batches=1, seed=7
    )
    names = list(ROWS)
    return collate(
        [ROWS[names[language]].example(row, epoch, language) for language, row, epoch in sampler], 0
    )


@pytest.mark.parametrize(("labels", "weight", "temperature"), [("soft", 1.0, 1.0), ("both", 0.3, 2.0)])
def test_the_first_loss_is_the_dense_formula(tmp_path, labels, weight, temperature) -> None:
    _, log = trained(tmp_path, labels=labels, weight=weight, temperature=temperature)
    batch = first_batch()
    assert not batch["attention_mask"].all()
    assert set(batch["language"].tolist()) == {0, 1}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours, *theirs = (
            model.eval()(**inputs).logits.flatten(0, 1)[batch["positions"]]
            for model in (make_model(), make_teacher(5), make_teacher(6))
        )
    chosen = torch.where(batch["language"][:, None] == 0, *theirs)
    kd = temperature**2 * functional.kl_div(
        (ours / temperature).log_softmax(-1), (chosen / temperature).softmax(-1), reduction="batchmean"
    )
    mlm = functional.cross_entropy(ours, batch["ids"][:, 0])
    assert log[0]["kd_loss"] == pytest.approx(kd.item(), abs=1e-4)
    assert log[0]["mlm_loss"] == pytest.approx(mlm.item(), abs=1e-4)
    share = len(batch["positions"]) / expected_size(list(ROWS.values()), [0.5, 0.5], 8).masked
    assert log[0]["loss"] == pytest.approx((weight * kd + (1 - weight) * mlm).item() * share, abs=1e-3)
    # The teachers differ, so that a wrong one shows.
    assert not torch.allclose(theirs[0], theirs[1], atol=0.1)


def held_out():
    rows = Rows(12, 9, teacher=False)
    return [rows.example(row, 0, 0) for row in range(12)]


def held_out_loss(model):
    batch = collate(held_out(), 0)
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return functional.cross_entropy(logits.flatten(0, 1)[batch["positions"]], batch["ids"][:, 0]).item()


def test_the_held_out_loss_is_a_mean_over_tokens_whatever_the_batches(tmp_path) -> None:
    """Examples differ in masked tokens: a mean over batches or examples is another number."""
    losses = []
    for size in (1, 5, 12):
        stopping = EarlyStopping(held_out(), patience=9, evaluations=1)
        model, log = trained(
            tmp_path / str(size),
            steps=1,
            labels="gold",
            teachers=False,
            stopping=stopping,
            learning_rate=0.0,
            per_device_eval_batch_size=size,
        )
        losses += [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert losses == [pytest.approx(held_out_loss(model), abs=1e-5)] * 3
    each = []
    for example in held_out():
        batch = collate([example], 0)
        with torch.no_grad():
            logits = model.eval()(input_ids=batch["input_ids"]).logits[0, batch["positions"]]
        each.append(functional.cross_entropy(logits, batch["ids"][:, 0]).item())
    assert abs(sum(each) / len(each) - losses[0]) > 1e-3


STOPPING = {"per_device_eval_batch_size": 12, "learning_rate": 5e-3}


def test_training_stops_when_held_out_examples_get_worse_and_keeps_the_best(tmp_path) -> None:
    """Random text: anything learned from the training examples makes others worse."""
    stopping = EarlyStopping(held_out(), patience=2, evaluations=20)
    model, log = trained(tmp_path, steps=60, labels="gold", teachers=False, stopping=stopping, **STOPPING)
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert 3 <= len(losses) < 20
    assert losses[-2:] == [loss for loss in losses[-2:] if loss > min(losses)]
    assert held_out_loss(model) == pytest.approx(min(losses), abs=1e-4)
    # Measuring leaves no trace in the training's own log.
    plain, without = trained(tmp_path / "b", steps=60, labels="gold", teachers=False, **STOPPING)
    steps = {entry["step"]: entry["mlm_loss"] for entry in without if "mlm_loss" in entry}
    measured = {entry["step"]: entry["mlm_loss"] for entry in log if "mlm_loss" in entry}
    assert measured == {step: steps[step] for step in measured}
    assert difference(plain, model) > 1e-3


def test_a_stopped_run_goes_on_and_stops_where_it_would_have(tmp_path) -> None:
    def run(folder):
        stopping = EarlyStopping(held_out(), patience=3, evaluations=20)
        return trained(folder, steps=60, labels="gold", teachers=False, stopping=stopping, **STOPPING)

    whole, log = run(tmp_path / "a")
    last = max(entry["step"] for entry in log if "eval_loss" in entry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTrainer, "check", stop_at(last - 2))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b")
    again, other = run(tmp_path / "b")
    assert [e["eval_loss"] for e in other if "eval_loss" in e] == [
        e["eval_loss"] for e in log if "eval_loss" in e
    ]
    assert difference(whole, again) == 0


def test_a_run_that_had_stopped_is_not_trained_further_wherever_its_folder_is_now(tmp_path) -> None:
    """Killed after early stopping, before the model was written; and moved since."""

    def run(folder):
        stopping = EarlyStopping(held_out(), patience=2, evaluations=20)
        return trained(folder, steps=60, labels="gold", teachers=False, stopping=stopping, **STOPPING)

    whole, log = run(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    again, other = run(tmp_path / "b")
    measured, remembered = ([e["eval_loss"] for e in entries if "eval_loss" in e] for entries in (log, other))
    assert remembered == measured
    assert difference(whole, again) == 0
    best = min(tmp_path.glob("b/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    best.rename(tmp_path / "gone")
    with pytest.raises(RunFolderError, match="best checkpoint of the training is missing"):
        run(tmp_path / "b")
