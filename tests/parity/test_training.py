"""The training loop: batches, accumulation, resuming, and what it minimises."""

import gc
import itertools
import json
import math
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.config.models import Distillation
from polydistill.errors import NumericsError
from polydistill.losses import soft_targets
from polydistill.models import attention_for, length_parts
from polydistill.training import (
    DistillationTrainer,
    LanguageSampler,
    MaskedTexts,
    StepSize,
    StoredExamples,
    TrainingExample,
    check_arguments,
    choose_copies,
    collate,
    collate_parts,
    last_checkpoint,
    train,
)

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
         "max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip


class Rows:
    """Examples with a teacher's labels, made by seed; rows differ in length and number of masks."""

    def __init__(self, number: int, seed: int, *, teacher: bool = True) -> None:
        self.number, self.seed, self.teacher = number, seed, teacher

    def __len__(self) -> int:
        return self.number

    @property
    def lengths(self):
        return np.array([len(self.example(row, 0, 0).input_ids) for row in range(self.number)])

    def example(self, row: int, epoch: int, language: int) -> TrainingExample:
        draw = np.random.default_rng([self.seed, row])
        length = int(draw.integers(6, 14))
        positions = np.sort(draw.choice(length, int(draw.integers(1, 5)), replace=False))
        k = 3 if self.teacher else 0
        logprobs = np.log(draw.dirichlet(np.ones(5), len(positions))[:, :k]).astype(np.float32)
        top = (
            np.stack([draw.choice(50, k, replace=False) for _ in positions])
            if k
            else np.zeros((len(positions), 0), dtype=np.int64)
        )
        return TrainingExample(
            language,
            draw.integers(5, 50, length),
            positions,
            draw.integers(5, 50, len(positions)),
            top,
            logprobs,
            row,
            epoch,
        )

    def identify(self, row: int) -> dict:
        return {"example": 1000 * self.seed + row}


def make_model():
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SMALL))


def trained(
    folder, *, steps=6, distillation=None, labels=None, make_trainer=DistillationTrainer, **arguments
):
    model = make_model()
    values = check_arguments(
        {"max_steps": steps, "per_device_train_batch_size": 8, "logging_steps": 1, "save_steps": 100, "report_to": [],
         "bf16": False, "learning_rate": 1e-2} | arguments
    )  # fmt: skip
    log = train(
        model, {"a": Rows(40, 1), "b": Rows(10, 2)}, [0.75, 0.25], folder=folder, arguments=values,
        distillation=distillation or Distillation(), pad_id=0, max_length=64, seed=7, say=lambda line: None, labels=labels,
        make_trainer=make_trainer,
    )  # fmt: skip
    return model, log


def difference(one, other) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def first_batch():
    """The first batch of `trained`, and the model's log-probabilities at its masked tokens by the whole model."""
    rows = [Rows(40, 1), Rows(10, 2)]
    sampler = LanguageSampler(
        [language.lengths for language in rows], [0.75, 0.25], batch_size=8, num_batches=1, seed=7
    )
    batch = collate([rows[language].example(row, epoch, language) for language, row, epoch in sampler], 0)
    logits = make_model()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return batch, logits.reshape(-1, 50)[batch["positions"]].log_softmax(-1)


def step_size():
    """What a step of `trained` has on average, counted by hand: all of a language's rows are in the sample."""
    sizes = [
        [
            (len(one.positions), len(one.input_ids))
            for one in (rows.example(row, 0, 0) for row in range(rows.number))
        ]
        for rows in (Rows(40, 1), Rows(10, 2))
    ]
    means = [np.mean(language, axis=0) for language in sizes]
    return StepSize(*(8 * (0.75 * means[0] + 0.25 * means[1])))


@pytest.mark.parametrize("tail", ["renormalise", "bucket", "raw", "gold"])
def test_the_first_loss_is_the_dense_formula(tmp_path, tail) -> None:
    """lambda * KD + (1 - lambda) * MLM, divided by a step's mean number of masked tokens, from the whole model's logits."""
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
    # What is logged as KD leaves out what the gold piece gets of the tail.
    logged = kd.mean().item()
    if tail == "gold":
        kd = kd + rest * mlm
    assert log[0]["mlm_loss"] == pytest.approx(mlm.mean().item(), abs=1e-4)
    assert log[0]["kd_loss"] == pytest.approx(logged, abs=1e-4)
    assert log[0]["loss"] == pytest.approx((0.3 * kd + 0.7 * mlm).sum().item() / step_size().masked, abs=1e-3)


def test_a_language_with_labels_of_its_own(tmp_path) -> None:
    """Language a learns from its teacher alone, b from its text alone, whatever the schedule says."""
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
    """Two micro-batches of 8 equal one batch with the same 16 examples, though their masked tokens differ in number."""

    class Same(LanguageSampler):
        """The order of batches of 8, whatever the batch size."""

        def __init__(self, lengths, probabilities, *, batch_size, num_batches, seed):
            super().__init__(
                lengths, probabilities, batch_size=8, num_batches=batch_size * num_batches // 8, seed=seed
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydistill.training.run.LanguageSampler", Same)
        whole, _ = trained(tmp_path / "a", per_device_train_batch_size=16, optim="sgd", max_grad_norm=0)
        parts, _ = trained(tmp_path / "b", gradient_accumulation_steps=2, optim="sgd", max_grad_norm=0)
    assert difference(whole, parts) < 1e-5
    assert difference(whole, make_model()) > 1e-3


def test_attention_of_short_sequences_is_the_same_computation(tmp_path) -> None:
    """The plain products that short sequences take on a processor train to what torch's own kernel trains to."""
    import contextlib

    plain, log = trained(tmp_path / "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydistill.training.run.attention_for", lambda *_: contextlib.nullcontext())
        other, _ = trained(tmp_path / "b")
    assert difference(plain, other) < 1e-4
    assert all(0.0 <= entry["waiting_share"] <= 1.0 for entry in log if "mlm_loss" in entry)


def test_which_attention_for_which_length() -> None:
    """Plain products for short sequences on a processor; for long ones and on a GPU torch's own choice."""
    from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

    everything = set(_cur_sdpa_kernel_backends())
    for length in (64, 128):
        with attention_for(torch.device("cpu"), length):
            assert _cur_sdpa_kernel_backends() == [SDPBackend.MATH]
    for device, length in (("cpu", 129), ("cuda", 64)):
        with attention_for(torch.device(device), length):
            assert set(_cur_sdpa_kernel_backends()) == everything


def test_resuming_gives_the_same_weights(tmp_path) -> None:
    """A run that stops at a checkpoint and goes on ends with the bytes of one that does not stop."""
    whole, _ = trained(tmp_path / "a", steps=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydistill.training.trainer.DistillationTrainer.check", stop_at(8))
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "b", steps=12, save_steps=5)
    assert (tmp_path / "b" / "checkpoint-5" / "complete.json").is_file()
    resumed, log = trained(tmp_path / "b", steps=12, save_steps=5)
    assert difference(whole, resumed) == 0.0
    assert [entry["step"] for entry in log if "mlm_loss" in entry] == list(range(1, 13))


def stop_at(step):
    def check(self, loss):
        if self.state.global_step == step:
            raise KeyboardInterrupt

    return check


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


def test_languages_are_mixed_within_batches_and_rows_do_not_repeat() -> None:
    lengths = [np.arange(30), np.arange(5)]
    sampler = LanguageSampler(lengths, [0.7, 0.3], batch_size=10, num_batches=30, seed=3)
    drawn = list(sampler)
    assert drawn == list(sampler)
    assert len(drawn) == len(sampler) == 300
    for start in range(0, 300, 10):
        batch = drawn[start : start + 10]
        assert sum(language == 1 for language, _, _ in batch) == 3
        # The small language comes round several times in a window, never in more than two epochs of one batch.
        assert len({epoch for language, _, epoch in batch if language == 1}) <= 2
    for language, size in ((0, 30), (1, 5)):
        rows = [(epoch, row) for which, row, epoch in drawn if which == language]
        assert len(set(rows)) == len(rows)
        last = max(epoch for epoch, _ in rows)
        for epoch in range(last):
            assert {row for which, row in rows if which == epoch} == set(range(size))


def articles() -> np.ndarray:
    """Lengths of articles that are not joined: log-normal around 120 tokens, cut at 510."""
    return (
        np.minimum(np.exp(np.random.default_rng(0).normal(np.log(120), 1.0, 4000)), 510).astype(np.int64) + 2
    )


class Lengths:
    """Texts of given lengths; every seventh token is masked."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, row: int, epoch: int, language: int) -> TrainingExample:
        length = int(self.lengths[row])
        positions = np.arange(1, length, 7)
        none = np.zeros((len(positions), 0))
        return TrainingExample(
            language, np.full(length, 6), positions, np.full(len(positions), 7), none.astype(np.int64),
            none.astype(np.float32), row, epoch,
        )  # fmt: skip


def test_every_token_weighs_the_same_in_texts_of_all_lengths(tmp_path) -> None:
    """The mean weight of a token by quartile of its text's length, 1 being average, read off the trainer's own loss.

    With a loss of 1 a position, a step's loss is its positions times their weight; its own tokens are known.
    """
    data = Lengths(articles())
    quartiles = np.searchsorted(np.quantile(data.lengths, [0.25, 0.5, 0.75]), data.lengths)
    weights, tokens = np.zeros(4), np.zeros(4)

    class Recorded(DistillationTrainer):
        """Takes the weight of each part's positions in place of computing anything."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            rows = inputs["positions"] // inputs["input_ids"].shape[1]
            of_row = torch.bincount(rows, minlength=len(inputs["keys"])).numpy()
            each = float(self.position_weight(model, len(rows)))
            quartile = quartiles[inputs["keys"][:, 1].numpy()]
            np.add.at(weights, quartile, of_row * each)
            np.add.at(tokens, quartile, of_row)
            return next(model.parameters()).sum() * 0.0

    values = check_arguments(
        {"max_steps": 200, "per_device_train_batch_size": 32, "report_to": [], "save_strategy": "no"}
    )
    train(
        make_model(), {"a": data}, [1.0], folder=tmp_path, arguments=values, distillation=Distillation(), pad_id=0,
        max_length=512, seed=0, say=lambda line: None, make_trainer=Recorded,
    )  # fmt: skip
    relative = weights / tokens / (weights.sum() / tokens.sum())
    assert np.all((relative > 0.95) & (relative < 1.05)), relative
    # Most steps see most lengths, so that a step is no sample of one kind of text.
    sampler = LanguageSampler([data.lengths], [1.0], batch_size=32, num_batches=100, seed=0)
    drawn = np.array([quartiles[row] for _, row, _ in sampler]).reshape(100, 32)
    assert min(len(set(step.tolist())) for step in drawn) == 4


def test_padding_is_rare_within_a_step_of_all_lengths() -> None:
    data = Lengths(articles())
    sampler = LanguageSampler([data.lengths], [1.0], batch_size=32, num_batches=50, seed=0)
    keys = np.array(list(sampler)).reshape(50, 32, 3)
    real = padded = whole = 0
    for step in keys:
        lengths = [int(data.lengths[row]) for _, row, _ in step]
        assert lengths == sorted(lengths, reverse=True)
        parts = collate_parts([data.example(int(row), 0, 0) for _, row, _ in step], 0, 64)["parts"]
        assert sorted(row for part in parts for row in part["keys"][:, 1].tolist()) == sorted(
            step[:, 1].tolist()
        )
        real += sum(lengths)
        padded += sum(part["input_ids"].numel() for part in parts)
        whole += 32 * max(lengths)
    assert 1 - real / padded < 0.15 < 0.5 < 1 - real / whole


@pytest.mark.parametrize("overhead", [0, 40, 100_000])
def test_parts_are_the_cheapest_ones(overhead) -> None:
    """Against every partition of the sorted rows, by brute force."""
    draw = np.random.default_rng(2)
    for _ in range(20):
        lengths = draw.integers(1, 90, int(draw.integers(1, 25))).tolist()
        ordered = sorted(lengths, reverse=True)
        inner = list(range(4, len(lengths), 4))
        costs = []
        for chosen in range(2 ** len(inner)):
            borders = [0, *(place for bit, place in enumerate(inner) if chosen >> bit & 1), len(lengths)]
            costs.append(
                sum((b - a) * (-(-ordered[a] // 8) * 8) + overhead for a, b in itertools.pairwise(borders))
            )
        parts = length_parts(lengths, overhead)
        assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
        cost = sum(len(part) * (-(-max(lengths[i] for i in part) // 8) * 8) + overhead for part in parts)
        assert cost == min(costs)


def test_a_step_without_a_masked_token_changes_nothing(tmp_path) -> None:
    """One word of text is masked in 15 % of its draws, so that a step of short texts may have none."""

    class Bare(Rows):
        def example(self, row, epoch, language):
            found = super().example(row, epoch, language)
            none = np.zeros(0, dtype=np.int64)
            return replace(
                found,
                positions=none,
                gold=none,
                top_ids=found.top_ids[:0],
                top_logprobs=found.top_logprobs[:0],
            )

    model = make_model()
    values = check_arguments(
        {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": [], "weight_decay": 0, "bf16": False}
    )
    log = train(
        model, {"a": Bare(8, 1)}, [1.0], folder=tmp_path, arguments=values, distillation=Distillation(), pad_id=0,
        max_length=64, seed=7, say=lambda line: None,
    )  # fmt: skip
    assert log[0]["loss"] == 0
    assert difference(model, make_model()) == 0


class FakeStore:
    def __init__(self, examples, losses):
        self.examples, self.losses = np.array(examples, dtype=np.uint64), np.array(losses, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.examples)


def test_choice_of_copies() -> None:
    stores = [FakeStore([7, 8, 9], [1.0, 5.0, 2.0]), FakeStore([7, 8, 9], [2.0, 4.0, 2.0])]
    assert choose_copies(stores, "all", ["x", "y"]).tolist() == [
        [0, 0],
        [0, 1],
        [0, 2],
        [1, 0],
        [1, 1],
        [1, 2],
    ]
    assert choose_copies(stores, "y", ["x", "y"]).tolist() == [[1, 0], [1, 1], [1, 2]]
    assert choose_copies(stores, "best", ["x", "y"]).tolist() == [[0, 0], [1, 1], [0, 2]]
    weights = [np.array([9.0, 1.0, 1.0]), np.array([1.0, 9.0, 1.0])]
    assert choose_copies(stores, "best", ["x", "y"], weights=weights).tolist() == [[1, 0], [0, 1], [0, 2]]


def test_a_trainer_is_gone_when_its_training_is_over(tmp_path) -> None:
    """With its optimizer: two moments of every weight. A collector may come much later, or not before memory is out."""
    seen = []

    def make(**arguments):
        trainer = DistillationTrainer(**arguments)
        seen.append(weakref.ref(trainer))
        return trainer

    gc.collect()
    gc.disable()
    try:
        trained(tmp_path, steps=2, make_trainer=make)
        assert len(seen) == 1
        assert seen[0]() is None
    finally:
        gc.enable()


def test_examples_are_named_as_their_corpus_names_them() -> None:
    class Store:
        folder = Path("store/en/t")

        def __init__(self, examples):
            self.examples, self.lengths = examples, np.ones(len(examples), dtype=np.int64)

        def row(self, place):
            return SimpleNamespace(example=self.examples[place])

    stored = StoredExamples([Store([7, 8]), Store([9])], [None, None], np.array([[1, 0], [0, 1]]))
    assert [stored.identify(row)["example"] for row in range(2)] == [9, 8]
    assert stored.identify(0)["store"] == "store/en/t"
    ids = np.array([2**64 - 1, 5, 6], dtype=np.uint64)
    texts = MaskedTexts(np.ones(3, dtype=np.int64), None, np.array([2, 0]), ids=ids)
    assert [texts.identify(row)["example"] for row in range(2)] == [6, 2**64 - 1]
    assert MaskedTexts(np.ones(3, dtype=np.int64), None, ids=ids).identify(1) == {"example": 5}


def test_a_loss_that_is_not_finite_stops_training(tmp_path) -> None:
    """The batch that had it is saved with the weights, and each of its examples is named as its source names it."""
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
    assert [(one["language"], one["example"], one["epoch"]) for one in said["examples"]] == [
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
    """The loss is finite until the optimizer has taken such a gradient; then the weights and a checkpoint have it."""
    model, steps = make_model(), []

    def poisoned(gradient):
        steps.append(len(steps))
        return torch.full_like(gradient, value) if len(steps) == 4 else gradient

    model.bert.embeddings.word_embeddings.weight.register_hook(poisoned)
    monkeypatch.setattr(sys.modules[__name__], "make_model", lambda: model)
    with pytest.raises(NumericsError, match="a gradient is not finite at step 3"):
        trained(tmp_path / "checkpoints", steps=6, save_steps=1, max_grad_norm=max_grad_norm)
    saved = load_file(tmp_path / "nonfinite-step-3" / "model.safetensors")
    assert all(bool(torch.isfinite(weight).all()) for weight in saved.values())
    assert last_checkpoint(tmp_path / "checkpoints").name == "checkpoint-3"
