"""A small student, rows of a store and a training of seconds, for tests."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.config.shared import Distillation
from polydistill.training.arguments import check_arguments
from polydistill.training.data import StepSize, TrainingExample, collate
from polydistill.training.objectives import StoredLabels
from polydistill.training.run import train
from polydistill.training.sampler import LanguageSampler

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class Rows:
    """Examples with a teacher's labels, drawn by seed; rows differ in length and number of masks."""

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


class SameOrder(LanguageSampler):
    """The order of batches of 8, whatever the batch size."""

    def __init__(self, lengths, probabilities, *, batch_size, num_batches, seed, phases):
        super().__init__(
            lengths,
            probabilities,
            batch_size=8,
            num_batches=batch_size * num_batches // 8,
            seed=seed,
            phases=phases,
        )


def make_model():
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SMALL))


def short_training(steps, **arguments):
    return check_arguments(
        {
            "max_steps": steps,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "save_steps": 100,
            "report_to": [],
            "bf16": False,
            "learning_rate": 1e-2,
        }
        | arguments
    )


def trained(folder, *, steps=6, distillation=None, labels=None, **arguments):
    model = make_model()
    values = short_training(steps, **arguments)
    log = train(
        model,
        {"a": Rows(40, 1), "b": Rows(10, 2)},
        [0.75, 0.25],
        folder=folder,
        arguments=values,
        objective=StoredLabels(distillation or Distillation(), ["a", "b"], labels),
        pad_id=0,
        max_length=64,
        seed=7,
        say=lambda line: None,
    )
    return model, log


def difference(first, other) -> float:
    return max(
        float((a - b).abs().max()) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )


def first_batch():
    """The first batch of `trained`, and the whole model's log-probabilities at its masked tokens."""
    rows = [Rows(40, 1), Rows(10, 2)]
    sampler = LanguageSampler(
        [language.lengths for language in rows], [0.75, 0.25], batch_size=8, num_batches=1, seed=7
    )
    batch = collate([rows[language].example(row, epoch, language) for language, row, epoch in sampler], 0)
    logits = make_model()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return batch, logits.reshape(-1, 50)[batch["positions"]].log_softmax(-1)


def step_size():
    """A step's averages in `trained`, counted by hand: the sample has all of a language's rows."""
    sizes = [
        [
            (len(example.positions), len(example.input_ids))
            for example in (rows.example(row, 0, 0) for row in range(rows.number))
        ]
        for rows in (Rows(40, 1), Rows(10, 2))
    ]
    means = [np.mean(language, axis=0) for language in sizes]
    return StepSize(*(8 * (0.75 * means[0] + 0.25 * means[1])))


def stop_at(step):
    def check(self, loss):
        if self.state.global_step == step:
            raise KeyboardInterrupt

    return check
