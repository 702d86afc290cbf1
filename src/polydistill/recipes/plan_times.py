"""The times that plans say: a few batches, and their median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from polydistill.config import BalanceRecipe, ExtractRecipe, MergeRecipe
from polydistill.losses import sparse_soft_cross_entropy
from polydistill.models import (
    attention_for,
    device,
    keep_freed_memory,
    length_batches,
    mask_texts,
    masked_features,
    output_layer,
    pad_batch,
    resolve_dtype,
)
from polydistill.scoring import predict
from polydistill.tokenization import LoadedTokenizer, count_tokens

TIMED_BATCHES = 3


def scoring_speed(
    recipe: MergeRecipe | ExtractRecipe, model: Any, tokenizer: LoadedTokenizer, texts: list[str]
) -> float:
    """Tokens a second of scoring, the median of a few small batches."""
    length = recipe.corpora.max_length
    joined = "\n".join(texts)
    # Pieces of text about as long as an example will be.
    step = max(1, round(len(joined) / max(1, sum(count_tokens([tokenizer.backend], texts))) * length))
    pieces = [joined[place : place + step] for place in range(0, min(len(joined), 200 * step), step)]
    masked = mask_texts(
        pieces, range(len(pieces)), tokenizer, max_length=length, masking=recipe.masking, seed=recipe.seed
    )
    batch = length_batches(
        [len(example.input_ids) for example in masked], min(2048, recipe.scoring.batch_tokens)
    )[0]
    chosen = [masked[row] for row in batch if len(masked[row].positions)]
    tokens = sum(len(example.input_ids) for example in chosen)
    return tokens / median_seconds(
        lambda: predict(
            model, chosen, ids=list(range(len(chosen))), pad_id=tokenizer.special_ids["pad"],
            vocabulary_size=tokenizer.size, top_k=recipe.scoring.top_k,
            sampling=recipe.scoring.sampling, dtype=resolve_dtype(recipe.scoring.precision), seed=recipe.seed,
        )
    )  # fmt: skip


def step_seconds(
    recipe: MergeRecipe | ExtractRecipe | BalanceRecipe, student: Any, arguments: dict[str, Any]
) -> float:
    """Seconds of one micro-batch's forward and backward pass, on random tokens, and of the optimizer."""
    size, length = arguments["per_device_train_batch_size"], recipe.corpora.max_length
    model = student.to(device()).train()
    draw = np.random.default_rng(0)
    ids, attention = pad_batch(list(draw.integers(5, 50, (size, length))), 0)
    positions = torch.arange(0, ids.numel(), max(1, round(1 / recipe.masking.probability)))
    columns = recipe.scoring.top_k + 1
    top = torch.randint(5, 50, (len(positions), columns))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    where = device()

    def step() -> None:
        with torch.autocast(where.type, torch.bfloat16, enabled=bool(arguments["bf16"])):
            features = masked_features(
                model,
                {"input_ids": ids.to(where), "attention_mask": attention.to(where)},
                positions.to(where),
            )
        weight, bias = output_layer(model)
        target = torch.full((len(positions), columns), 1.0 / columns, device=where)
        sparse_soft_cross_entropy(features, weight, bias, top.to(where), target / len(target)).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    if where.type == "cpu":
        keep_freed_memory()
    with attention_for(where, length):
        return median_seconds(step)


def median_seconds(work: Callable[[], Any]) -> float:
    """The median time of a few calls, after one that warms up."""
    work()
    seconds = []
    for _ in range(TIMED_BATCHES):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
