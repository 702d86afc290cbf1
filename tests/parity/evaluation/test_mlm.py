"""Ranks and measures against brute force."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.evaluation.mlm import measure, ranks_of, unigram_ranks
from polydistill.evaluation.uncertainty import paired_difference, standard_error
from polydistill.masking import Masked
from polydistill.models.inputs import length_batches


def brute_rank(scores: list[float], gold: int) -> float:
    places = [
        1 + place
        for place, index in enumerate(sorted(range(len(scores)), key=lambda i: -scores[i]))
        if scores[index] == scores[gold]
    ]
    return sum(places) / len(places)


def test_ranks_with_ties() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 5.0]])
    assert ranks_of(logits, torch.tensor([1, 4])).tolist() == [4.0, 1.0]
    torch.manual_seed(1)
    random = torch.randint(0, 4, (50, 9)).float()
    gold = torch.randint(0, 9, (50,))
    expected = [brute_rank(row.tolist(), int(g)) for row, g in zip(random, gold, strict=True)]
    assert ranks_of(random, gold).tolist() == expected


def test_unigram_ranks() -> None:
    counts = np.array([5, 0, 9, 5, 0])
    assert unigram_ranks(counts, np.array([2, 0, 3, 1])).tolist() == [1.0, 2.5, 2.5, 4.5]


def test_every_masked_token_is_measured_once_by_hand() -> None:
    """Other batch sizes, a restriction and a text without masks do not change the measures."""
    torch.manual_seed(2)
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(
            "bert",
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    ).eval()
    with torch.no_grad():
        model.cls.predictions.decoder.bias.normal_(std=2)
    draw = np.random.default_rng(0)
    examples = []
    for length in (5, 9, 4, 12, 6):
        positions = np.sort(draw.choice(length, 0 if length == 4 else 2, replace=False))
        examples.append(Masked(draw.integers(5, 40, length), positions, draw.integers(5, 40, len(positions))))
    allowed = np.zeros(40, dtype=bool)
    allowed[::3] = True
    ranks, restricted, losses = [], [], []
    for example in examples:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(example.input_ids)[None]).logits[0]
        for position, gold in zip(example.positions, example.gold, strict=True):
            row = logits[position].tolist()
            ranks.append(brute_rank(row, int(gold)))
            kept = [s if allowed[i] or i == gold else -np.inf for i, s in enumerate(row)]
            restricted.append(1 + sum(s > row[gold] for s in kept))
            losses.append(float(-logits[position].log_softmax(-1)[gold]))
    lengths = [len(example.input_ids) for example in examples]
    for batches in ([[0, 1, 2, 3, 4]], length_batches(lengths, 16), [[4], [3, 2], [0, 1]]):
        measured = measure(model, examples, pad_id=0, batches=batches, restrict=allowed, chunk_positions=3)
        assert measured.ranks.tolist() == ranks
        assert measured.restricted_ranks.tolist() == restricted
        np.testing.assert_allclose(measured.losses, losses, atol=1e-4)
    summary = measured.summary()
    assert summary["num_masked"] == 8
    assert summary["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)))
    assert summary["top5"] == np.mean(np.array(ranks) <= 5)


def test_standard_error_is_the_textbook_one_and_knows_that_tokens_of_an_example_hang_together() -> None:
    draw = np.random.default_rng(0)
    values = draw.random(400)
    alone = standard_error(values, np.ones(400, dtype=np.int64))
    assert alone == pytest.approx(values.std(ddof=1) / math.sqrt(400), rel=1e-12)
    # Each token repeated four times in its example adds no information.
    fourfold = standard_error(np.repeat(values, 4), np.full(400, 4))
    assert fourfold == pytest.approx(alone, rel=1e-12)
    # Against repeated resampling of examples, where they differ in length.
    counts = draw.integers(1, 9, 300)
    tokens = draw.random(counts.sum()) + np.repeat(draw.random(300), counts)
    ends = np.cumsum(counts)
    means = []
    for _ in range(3000):
        chosen = draw.integers(0, 300, 300)
        means.append(np.concatenate([tokens[ends[i] - counts[i] : ends[i]] for i in chosen]).mean())
    assert standard_error(tokens, counts) == pytest.approx(np.std(means), rel=0.05)
    assert standard_error(np.zeros(0), np.zeros(0, dtype=np.int64)) == 0.0


def test_paired_difference_sees_through_what_both_models_share() -> None:
    """One model is slightly better on every token: far below each mean's own error, and still settled."""
    draw = np.random.default_rng(1)
    counts = draw.integers(1, 9, 300)
    first = draw.random(counts.sum())
    better = first + 0.01 + 0.02 * draw.standard_normal(len(first))
    paired = paired_difference(better, first, counts)
    assert paired.value == pytest.approx((better - first).mean())
    assert paired.low < paired.value < paired.high
    assert paired.settled
    assert paired.high - paired.low < standard_error(first, counts)
    assert paired == paired_difference(better, first, counts)
    same = paired_difference(draw.permutation(first), first, counts)
    assert not same.settled
    assert paired_difference(first, first, counts) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="same tokens"):
        paired_difference(first[1:], first, counts)
