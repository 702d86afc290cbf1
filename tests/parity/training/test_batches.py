"""The content of a training step: languages, copies, lengths, and every token's weight."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.conftest import bundled_lines, write_examples
from tests.training import Rows, difference, make_model
from torch.utils.data import DataLoader

from polydistill.config.shared import Distillation, Masking
from polydistill.corpora.examples import Examples
from polydistill.losses.sparse import SparseLoss
from polydistill.models.inputs import length_parts
from polydistill.tokenization.load import load_tokenizer
from polydistill.training.arguments import check_arguments
from polydistill.training.data import (
    LanguageDataset,
    MaskedTexts,
    StoredExamples,
    TrainingExample,
    choose_copies,
    collate_parts,
)
from polydistill.training.objectives import StoredLabels
from polydistill.training.run import train
from polydistill.training.sampler import LanguageSampler


def test_languages_are_mixed_within_batches_and_rows_do_not_repeat() -> None:
    lengths = [np.arange(30), np.arange(5)]
    sampler = LanguageSampler(lengths, [0.7, 0.3], batch_size=10, num_batches=30, seed=3)
    drawn = list(sampler)
    assert drawn == list(sampler)
    assert len(drawn) == len(sampler) == 300
    for start in range(0, 300, 10):
        batch = drawn[start : start + 10]
        assert sum(language == 1 for language, _, _ in batch) == 3
        # The small language repeats several times in a window, but no batch spans more than two of its
        # epochs.
        assert len({epoch for language, _, epoch in batch if language == 1}) <= 2
    for language, size in ((0, 30), (1, 5)):
        rows = [(epoch, row) for which, row, epoch in drawn if which == language]
        assert len(set(rows)) == len(rows)
        last = max(epoch for epoch, _ in rows)
        for epoch in range(last):
            assert {row for which, row in rows if which == epoch} == set(range(size))


def articles() -> np.ndarray:
    """Lengths of unjoined articles: log-normal around 120 tokens, cut at 510."""
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
            language,
            np.full(length, 6),
            positions,
            np.full(len(positions), 7),
            none.astype(np.int64),
            none.astype(np.float32),
            row,
            epoch,
        )


def test_every_token_weighs_the_same_in_texts_of_all_lengths(tmp_path, monkeypatch) -> None:
    """The mean weight of a token by quartile of its text's length (average 1), read from the loss's input."""
    data = Lengths(articles())
    quartiles = np.searchsorted(np.quantile(data.lengths, [0.25, 0.5, 0.75]), data.lengths)
    weights, tokens = np.zeros(4), np.zeros(4)

    batches = []

    class Recorded(StoredLabels):
        """Notes the batch of the loss below."""

        def __call__(self, model, head, batch, counts, progress):
            batches.append(batch)
            return super().__call__(model, head, batch, counts, progress)

    def features_of(model, inputs, positions):
        return model.get_input_embeddings().weight[:1].expand(len(positions), -1)

    def loss_of(features, weight, bias, ids, target, **more):
        """Records each position's weight and computes nothing."""
        batch = batches[-1]
        rows = batch["positions"] // batch["input_ids"].shape[1]
        quartile = quartiles[batch["keys"][rows, 1].numpy()]
        np.add.at(weights, quartile, target.sum(1).numpy())
        np.add.at(tokens, quartile, 1)
        return SparseLoss(features.sum() * 0.0, torch.zeros(len(ids), 1), torch.zeros(len(ids)))

    monkeypatch.setattr("polydistill.training.objectives.masked_features", features_of)
    monkeypatch.setattr("polydistill.training.objectives.sparse_soft_cross_entropy", loss_of)
    values = check_arguments(
        {"max_steps": 200, "per_device_train_batch_size": 32, "report_to": [], "save_strategy": "no"}
    )
    train(
        make_model(),
        {"a": data},
        [1.0],
        folder=tmp_path,
        arguments=values,
        objective=Recorded(Distillation(labels="gold"), ["a"]),
        pad_id=0,
        max_length=512,
        seed=0,
        say=lambda line: None,
    )
    relative = weights / tokens / (weights.sum() / tokens.sum())
    assert np.all((relative > 0.95) & (relative < 1.05)), relative
    # Most steps have most lengths: a step is no sample of a single kind of text.
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
    """A text's only word is masked in 15 % of its draws: a step of short texts may have no mask."""

    class Bare(Rows):
        def example(self, row, epoch, language):
            example = super().example(row, epoch, language)
            none = np.zeros(0, dtype=np.int64)
            return replace(
                example,
                positions=none,
                gold=none,
                top_ids=example.top_ids[:0],
                top_logprobs=example.top_logprobs[:0],
            )

    model = make_model()
    values = check_arguments(
        {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": [], "weight_decay": 0, "bf16": False}
    )
    log = train(
        model,
        {"a": Bare(8, 1)},
        [1.0],
        folder=tmp_path,
        arguments=values,
        objective=StoredLabels(Distillation(), ["a"]),
        pad_id=0,
        max_length=64,
        seed=7,
        say=lambda line: None,
    )
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
    examples = SimpleNamespace(ids=ids, num_tokens=np.ones(3, dtype=np.int32))
    settings = {"tokenizer": None, "masking": None, "max_length": 8, "seed": 0}
    texts = MaskedTexts(examples, rows=np.array([2, 0]), **settings)
    assert [texts.identify(row)["example"] for row in range(2)] == [6, 2**64 - 1]
    assert MaskedTexts(examples, **settings).identify(1) == {"example": 5}


def test_a_micro_batch_read_at_once_is_that_of_single_reads(tmp_path, teachers) -> None:
    """Two languages, two epochs, a source without texts, and rows in no order."""
    tokenizer = load_tokenizer(str(teachers["en"]))
    write_examples(tmp_path / "text.arrow", [(line, 20) for line in bundled_lines("en", 60)])
    settings = {"tokenizer": tokenizer, "masking": Masking(), "max_length": 24, "seed": 5}
    examples = Examples(tmp_path / "text.arrow")
    languages = [
        MaskedTexts(examples, **settings),
        Rows(10, 1),
        MaskedTexts(examples, rows=np.array([7, 3, 50, 2]), **settings),
    ]
    data = LanguageDataset(languages, 20)
    keys = [(0, 9, 0), (2, 1, 1), (1, 4, 0), (0, 2, 1), (2, 0, 1), (0, 55, 0), (2, 1, 0)]
    together, alone = data.__getitems__(keys), [data[key] for key in keys]
    assert [(made.language, made.row, made.epoch) for made in together] == keys
    for made, single in zip(together, alone, strict=True):
        for name in ("input_ids", "positions", "gold", "top_ids", "top_logprobs"):
            assert np.array_equal(getattr(made, name), getattr(single, name)), name
    assert not np.array_equal(together[1].input_ids, together[-1].input_ids)
    loader = DataLoader(data, batch_sampler=[keys], collate_fn=list)
    assert [made.row for made in next(iter(loader))] == [row for _, row, _ in keys]
