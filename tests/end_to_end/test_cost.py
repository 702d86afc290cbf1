"""The cost of serving models, each measured in its own process."""

import json

import pytest
import torch
from tests.end_to_end.test_merge import polydistill
from transformers import BertConfig, BertForMaskedLM

from polydistill.evaluation.cost import compare_cost, describe


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A large and a small BERT: 24 and 3 MB."""
    root = tmp_path_factory.mktemp("models")
    for name, layers, size in (("large", 8, 20_000), ("small", 1, 1_000)):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=size,
            hidden_size=256,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=64,
        )
        BertForMaskedLM(config).save_pretrained(root / name)
    return str(root / "large"), str(root / "small")


def test_sizes_are_counted_by_hand(models) -> None:
    facts = describe(models[1])
    layer = 4 * (256 * 256 + 256) + 2 * (256 * 256 + 256) + 4 * 256
    outside = 64 * 256 + 2 * 256 + 2 * 256 + (256 * 256 + 256) + 2 * 256 + 1000
    assert facts["embedding_parameters"] == 256_000
    assert facts["parameters"] == 256_000 + layer + outside
    assert facts["file_bytes"] == pytest.approx(4 * facts["parameters"], rel=0.02)


@pytest.mark.slow
def test_the_large_model_is_slower_and_takes_more_memory(models) -> None:
    rows = compare_cost(models, shapes=[(16, 512)], rounds=1, calls=2)
    assert [(row["model"], row["part"], row["length"]) for row in rows] == [
        (models[0], "encoder", 64),
        (models[1], "encoder", 64),
        (models[0], "model", 64),
        (models[1], "model", 64),
    ]
    large, small, large_head, _ = rows
    assert large["seconds"] > small["seconds"]
    # 16 x 64 x 20,000 logits in float32 take 78 MiB; the encoder alone does not make them.
    assert large_head["peak_bytes"] - large["peak_bytes"] > 50 * 2**20
    assert large["peak_bytes"] < 2**30, "the memory of the process that measures is not the model's"


def test_models_take_turns_and_rows_are_medians(models, monkeypatch) -> None:
    """Three rounds of two models. The second is slow once; its median does not show that."""
    seen, asked = [], []

    def measured(model, *arguments):
        seen.append(model)
        asked.append((model, arguments[-1]))
        return {"seconds": 9.0 if len(seen) == 2 else 1.0, "peak_bytes": float(len(seen))}

    monkeypatch.setattr("polydistill.evaluation.cost.in_a_process", measured)
    loading = {models[1]: {"revision": None, "allow_pickle": True}}
    rows = compare_cost(models, shapes=[(1, 8)], rounds=3, calls=1, loading=loading)
    # The options that a model needs for loading reach the process that measures it.
    assert all(options.get("allow_pickle", False) == (model == models[1]) for model, options in asked)
    assert seen[:6] == [*models] * 3
    assert [row["seconds"] for row in rows] == [1.0] * 4
    assert [row["peak_bytes"] for row in rows[:2]] == [3.0, 4.0]


def test_logits_that_do_not_fit_are_left_out(models, monkeypatch) -> None:
    monkeypatch.setattr("polydistill.evaluation.cost.MEMORY_SHARE", 0.0)
    monkeypatch.setattr(
        "polydistill.evaluation.cost.in_a_process", lambda *_: {"seconds": 1.0, "peak_bytes": 1.0}
    )
    rows = compare_cost(models[1:], shapes=[(1, 8)], rounds=1, calls=1)
    assert [row["seconds"] is None for row in rows] == [False, True]


@pytest.mark.slow
def test_the_command_prints_a_table(models, tmp_path) -> None:
    done = polydistill(
        "cost", models[1], "--rounds", "1", "--calls", "1", "--output", str(tmp_path / "cost.json")
    )
    assert done.returncode == 0, done.stderr
    for wanted in ("32 x 64", "1 x 64", "with MLM head", "ms", "MiB"):
        assert wanted in done.stdout
    assert len(json.loads((tmp_path / "cost.json").read_text("utf-8"))) == 4
    refused = polydistill("cost", str(tmp_path))
    assert refused.returncode == 2
