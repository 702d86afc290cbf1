"""The cost of steps with texts of all lengths: a training step's micro-batch padded whole, or in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from benchmarks.measure import alternate
from polydistill.losses.sparse import sparse_soft_cross_entropy
from polydistill.models.attention import attention_for
from polydistill.models.features import masked_features, output_layer
from polydistill.models.precision import device, resolve_dtype
from polydistill.training.data import TrainingExample, collate_parts

MASKED_ONE_IN = 7
# Assumed cost of one more part, in padded tokens; 10**9: all in one part.
OVERHEADS = (0, 16, 64, 256, 1024, 10**9)


def run(
    layers: str = "4", width: str = "312", vocabulary: str = "30000", batch: str = "32", rounds: str = "5"
) -> dict[str, object]:
    """The same 12 micro-batches, cut by each overhead in turn.

    Lengths are those of articles: log-normal, median 120 tokens, cut at 512.
    """
    draw = np.random.default_rng(0)
    lengths = np.minimum(np.exp(draw.normal(np.log(120), 1.0, 12 * int(batch))), 510).astype(np.int64) + 2
    steps = [
        [_example(int(length), int(vocabulary), draw) for length in part]
        for part in lengths.reshape(12, int(batch))
    ]
    model = _model(int(layers), int(width), int(vocabulary)).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    cut = {overhead: [collate_parts(step, 0, overhead)["parts"] for step in steps] for overhead in OVERHEADS}
    # The same number of steps, each of similar lengths: the least possible padding, but the wrong mean.
    ordered = sorted((example for step in steps for example in step), key=lambda e: -len(e.input_ids))
    windows = [
        collate_parts(ordered[start : start + int(batch)], 0, 10**9)["parts"]
        for start in range(0, len(ordered), int(batch))
    ]
    names = {f"overhead {overhead}" if overhead < 10**9 else "whole": made for overhead, made in cut.items()}
    names["steps of one length"] = windows
    with attention_for(device(), 512):
        seconds = alternate(
            {name: lambda made=made: _train(model, optimizer, made) for name, made in names.items()},
            rounds=int(rounds),
        )
    tokens = int(lengths.sum())
    return {
        "model": f"modernbert {layers} x {width}, {int(vocabulary):,} pieces, {model.num_parameters():,} "
        "parameters",
        "number_type": str(resolve_dtype("auto")).removeprefix("torch."),
        "tokens": tokens,
        "of_12_steps": {
            name: {
                "seconds": round(value, 3),
                "over_whole": round(value / seconds["whole"], 3),
                "padding": round(
                    1 - tokens / sum(part["input_ids"].numel() for step in names[name] for part in step), 3
                ),
                "parts_a_step": round(sum(map(len, names[name])) / 12, 1),
            }
            for name, value in seconds.items()
        },
    }


def _model(layers: int, width: int, vocabulary: int) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "modernbert",
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=4,
        intermediate_size=2 * width,
        pad_token_id=0,
        max_position_embeddings=512,
    )
    return AutoModelForMaskedLM.from_config(config).train()


def _example(length: int, vocabulary: int, draw: np.random.Generator) -> TrainingExample:
    positions = np.arange(1, length, MASKED_ONE_IN)
    none = np.zeros((len(positions), 0))
    return TrainingExample(
        0,
        draw.integers(5, vocabulary, length),
        positions,
        draw.integers(5, vocabulary, len(positions)),
        none.astype(np.int64),
        none.astype(np.float32),
    )


def _train(model: Any, optimizer: Any, steps: list[list[dict[str, torch.Tensor]]]) -> None:
    where = device()
    for parts in steps:
        for part in parts:
            inputs = {name: part[name].to(where) for name in ("input_ids", "attention_mask")}
            with torch.autocast(where.type, torch.bfloat16, enabled=resolve_dtype("auto") == torch.bfloat16):
                features = masked_features(model, inputs, part["positions"].to(where))
            weight, bias = output_layer(model)
            gold = part["ids"].to(where)
            target = torch.full(gold.shape, 1e-3, device=where)
            sparse_soft_cross_entropy(features, weight, bias, gold, target).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    if where.type == "cuda":
        torch.cuda.synchronize()
