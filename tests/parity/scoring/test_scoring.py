"""A store against the teacher's plain forward pass."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import half_scored

from polydistill.config.load import parse_recipe
from polydistill.models.load import load_masked_lm
from polydistill.pipelines.run import run_recipe
from polydistill.scoring.predict import draw_pieces, read_rows
from polydistill.store.reader import Store


def scored(values: dict, **scoring) -> Path:
    values = values | {"scoring": values["scoring"] | scoring}
    return run_recipe(parse_recipe(values), until="score", show=lambda line: None)


def test_a_store_holds_what_the_teacher_says(recipe_values, teachers) -> None:
    store = Store(scored(recipe_values) / "store" / "ru" / "ru")
    model = load_masked_lm(str(teachers["ru"]))
    assert len(store) > 100
    for index in range(0, len(store), 17):
        row = store.row(index)
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(row.input_ids.astype(np.int64))[None]).logits[0]
        logprobs = logits[row.positions.astype(np.int64)].log_softmax(-1)
        values, ids = logprobs.topk(8)
        gold = logprobs[range(len(row.gold)), row.gold.astype(np.int64)]
        np.testing.assert_allclose(row.top_logprobs.astype(np.float32), values, atol=2e-2)
        np.testing.assert_allclose(row.gold_logprobs.astype(np.float32), gold, rtol=2e-3, atol=2e-3)
        # Where two predictions are nearly equal, their order may differ.
        clear = (values[:, :-1] - values[:, 1:]).min(-1).values > 1e-3
        assert np.array_equal(row.top_ids[clear.numpy()], ids[clear])
        assert row.loss == pytest.approx(-float(gold.mean()), abs=1e-3)


def test_bytes_do_not_depend_on_where_scoring_stopped(recipe_values) -> None:
    """An unfinished store loses every second shard: the rest is kept, and the bytes are the same again."""
    folder = scored(recipe_values, shard_examples=32) / "store" / "ru" / "ru"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.suffix for path in folder.iterdir()} == {".arrow", ".json"}
    shards = sorted(half_scored(folder).glob("shard-*.arrow"))
    for path in shards[::2]:
        path.unlink()
    damaged = shards[1].read_bytes()
    shards[1].write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
    kept = {path.name: path.stat().st_mtime_ns for path in shards[3::2]}
    scored(recipe_values, shard_examples=32)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept


def test_bytes_a_position(recipe_values) -> None:
    """Everything but the input ids: at most 40 bytes at k = 8 and a vocabulary under 65,536, without the
    overhead of short rows.
    """
    store = Store(scored(recipe_values) / "store" / "ru" / "ru")
    tokens = sum(shard["tokens"] for shard in store.manifest["shards"])
    a_row = 8 + 4 + 4 + 4
    rest = store.num_bytes - 2 * tokens - a_row * len(store)
    assert 37 <= rest / store.num_masked <= 40


def test_draws_estimate_the_distribution_without_bias() -> None:
    torch.manual_seed(0)
    logprobs = torch.log_softmax(torch.randn(1, 6) * 2, -1)
    total = torch.zeros(6)
    rounds = 4000
    ids, weights = draw_pieces(logprobs.expand(rounds, -1), torch.rand(rounds, 4))
    total.index_add_(0, ids.reshape(-1), weights.exp().reshape(-1))
    torch.testing.assert_close(total / rounds, logprobs[0].exp(), atol=0.02, rtol=0)
    torch.testing.assert_close(weights.exp().sum(-1), torch.ones(rounds))
    ordered = ids.masked_fill(weights == -torch.inf, -1).sort(-1).values
    assert not ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()


def test_hybrid_predictions_estimate_the_whole_distribution() -> None:
    """The two likeliest are exact, two draws share the rest; their mean is the softmax."""
    torch.manual_seed(1)
    logits, rounds = torch.randn(1, 12) * 1.5, 40_000
    probabilities = logits.softmax(-1)[0]
    draws = torch.rand(rounds, 2)
    gold, ids, weights = read_rows(
        logits.expand(rounds, -1), None, torch.zeros(rounds, dtype=torch.long), 12, 2, draws
    )
    torch.testing.assert_close(gold, probabilities[0].log().expand(rounds))
    assert torch.all(weights[:, 1:] <= weights[:, :-1])
    target = torch.zeros(rounds, 12).scatter_add_(1, ids, weights.exp())
    torch.testing.assert_close(target.sum(-1), torch.ones(rounds))
    exact = probabilities.topk(2).indices
    torch.testing.assert_close(target[:, exact], probabilities[exact].expand(rounds, -1))
    torch.testing.assert_close(target.mean(0), probabilities, atol=4e-3, rtol=0)
    # Nearer to the distribution than as many draws from all of it.
    drawn, shares = draw_pieces(probabilities.log().expand(rounds, -1), torch.rand(rounds, 4))
    random = torch.zeros(rounds, 12).scatter_add_(1, drawn, shares.exp())
    assert (target - probabilities).square().sum(-1).mean() < 0.8 * (random - probabilities).square().sum(
        -1
    ).mean()


def test_hybrid_predictions_of_a_whole_vocabulary_leave_empty_slots() -> None:
    logits = torch.randn(3, 3)
    _, ids, weights = read_rows(logits, None, torch.zeros(3, dtype=torch.long), 3, 3, torch.rand(3, 3))
    shares = torch.zeros(3, 3).scatter_add_(1, ids, weights.exp())
    torch.testing.assert_close(shares, logits.softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampling", ["random", "hybrid"])
def test_sampling_in_a_store_leaves_no_tail(recipe_values, sampling) -> None:
    store = Store(scored(recipe_values, sampling=sampling) / "store" / "ru" / "ru")
    row = store.row(0)
    mass = np.exp(row.top_logprobs.astype(np.float64)).sum(-1)
    np.testing.assert_allclose(mass, 1, atol=2e-3)


@pytest.mark.parametrize("sampling", ["top_k", "random", "hybrid"])
def test_predictions_do_not_depend_on_chunks(teachers, monkeypatch, sampling) -> None:
    """Positions in chunks of five, and within them a few rows at a time, equal all of them at once."""
    from polydistill.masking import Masked
    from polydistill.scoring.predict import predict

    model = load_masked_lm(str(teachers["ru"]))
    size = model.config.vocab_size
    draw = np.random.default_rng(0)
    examples = []
    for length in (12, 20, 7):
        ids = draw.integers(5, size, length)
        positions = np.arange(1, length - 1, 2)
        examples.append(Masked(ids, positions, draw.integers(5, size, len(positions))))

    def predicted(**keywords):
        predictions = predict(
            model,
            examples,
            ids=[1, 2, 3],
            pad_id=0,
            vocabulary_size=size,
            top_k=6,
            sampling=sampling,
            dtype=torch.float32,
            seed=0,
            **keywords,
        )
        assert [len(prediction.gold_logprobs) for prediction in predictions] == [5, 9, 3]
        return [
            np.concatenate([getattr(prediction, name) for prediction in predictions])
            for name in predictions[0].__annotations__
        ]

    module = sys.modules["polydistill.scoring.predict"]
    seen = []
    real = module.masked_features
    monkeypatch.setattr(module, "masked_features", lambda m, i, p: seen.append(len(p)) or real(m, i, p))
    whole = predicted()
    # Row counts repeat, whatever is masked: 17 positions here.
    assert seen == [64]
    # The package has a function with the module's name.
    monkeypatch.setattr(module, "rows_at_once", lambda *_: 2)
    parts = predicted(chunk_positions=5)
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-5)
    assert np.array_equal(parts[1], whole[1])
    np.testing.assert_allclose(parts[2], whole[2], atol=1e-5)
