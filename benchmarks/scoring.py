"""Scoring beside the same teacher's plain forward pass, which has logits everywhere and keeps nothing."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from benchmarks.measure import alternate
from polydistill.masking import Masked
from polydistill.models import load_masked_lm, pad_batch
from polydistill.scoring import predict


def run(model: str = "", length: str = "64", batch: str = "64") -> dict[str, object]:
    """Tokens a second of our scoring and of plain forward passes in float32 and bfloat16.

    model  a folder or hub name; empty: a BERT of 4 layers × 312 with 21,128 pieces and random weights
    """
    torch.manual_seed(0)
    if model:
        teacher = load_masked_lm(model)
    else:
        config = AutoConfig.for_model(
            "bert",
            vocab_size=21128,
            hidden_size=312,
            num_hidden_layers=4,
            num_attention_heads=12,
            intermediate_size=1248,
        )
        teacher = AutoModelForMaskedLM.from_config(config).eval()
    draw = np.random.default_rng(0)
    size = teacher.config.vocab_size
    examples = []
    for _ in range(int(batch)):
        ids = draw.integers(5, size, int(length))
        positions = np.sort(draw.choice(int(length), max(1, round(0.15 * int(length))), replace=False))
        examples.append(Masked(ids, positions, ids[positions]))
    tokens = int(length) * int(batch)
    inputs, attention = pad_batch([example.input_ids for example in examples], 0)

    @torch.no_grad()
    def plain(dtype: torch.dtype) -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            teacher(input_ids=inputs, attention_mask=attention)

    def ours(dtype: torch.dtype) -> None:
        predict(
            teacher,
            examples,
            ids=range(len(examples)),
            pad_id=0,
            vocabulary_size=size,
            top_k=8,
            sampling="top_k",
            dtype=dtype,
            seed=0,
        )

    seconds = alternate(
        {
            "scoring, bfloat16": lambda: ours(torch.bfloat16),
            "scoring, float32": lambda: ours(torch.float32),
            "plain forward, bfloat16": lambda: plain(torch.bfloat16),
            "plain forward, float32": lambda: plain(torch.float32),
        }
    )
    return {
        "model": model.rsplit("/", 1)[-1] or "bert 4 x 312, 21,128 pieces",
        "tokens": tokens,
        "tokens_per_second": {name: round(tokens / value) for name, value in seconds.items()},
        "scoring_over_plain_bfloat16": round(
            seconds["plain forward, bfloat16"] / seconds["scoring, bfloat16"], 2
        ),
        "scoring_over_plain_float32": round(
            seconds["plain forward, float32"] / seconds["scoring, float32"], 2
        ),
        "scoring_bfloat16_over_plain_float32": round(
            seconds["plain forward, float32"] / seconds["scoring, bfloat16"], 2
        ),
    }
