"""Scoring on this machine: a teacher over a language's examples, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from polydistill.config.models import Masking, Scoring
from polydistill.masking import Masked
from polydistill.models import keep_freed_memory, length_batches, mask_texts
from polydistill.scoring.predict import predict
from polydistill.store import ScoredExample, StoreWriter
from polydistill.tokenization import LoadedTokenizer


class HasTexts(Protocol):
    """What scoring needs of examples: ids and texts by row."""

    def __len__(self) -> int: ...
    @property
    def ids(self) -> npt.NDArray[np.uint64]: ...
    def texts(self, rows: Any) -> list[str]: ...


def score(
    folder: Path,
    identity: dict[str, Any],
    examples: HasTexts,
    tokenizer: LoadedTokenizer,
    model: Any,
    *,
    scoring: Scoring,
    masking: Masking,
    max_length: int,
    dtype: torch.dtype,
    seed: int,
    progress: Callable[[int, int], None] = lambda examples, tokens: None,
) -> dict[str, Any]:
    """Write the store of one teacher over one language's examples into `folder`; return its manifest.

    Shards that are there already are kept: an interrupted run goes on, and the bytes are the same, for a
    shard depends on nothing but its own examples.
    progress  called with the examples and tokens done since the last call
    """
    if next(model.parameters()).device.type == "cpu":
        keep_freed_memory()
    writer = StoreWriter(folder, identity)
    num_shards = -(-len(examples) // scoring.shard_examples)
    todo = []
    for index in range(num_shards):
        if writer.has(index):
            progress(len(_rows(index, len(examples), scoring.shard_examples)), 0)
        else:
            todo.append(index)
    tokens = seconds = 0.0

    def prepare(index: int) -> tuple[list[int], list[Masked]]:
        rows = _rows(index, len(examples), scoring.shard_examples)
        ids = [int(example) for example in examples.ids[rows.start : rows.stop]]
        texts = examples.texts(slice(rows.start, rows.stop))
        return ids, mask_texts(texts, ids, tokenizer, max_length=max_length, masking=masking, seed=seed)

    for index, (ids, masked) in _ahead(prepare, todo):
        started = time.perf_counter()
        found: list[ScoredExample | None] = [None] * len(ids)
        for batch in length_batches([len(example.input_ids) for example in masked], scoring.batch_tokens):
            chosen = [row for row in batch if len(masked[row].positions)]
            if chosen:
                predictions = predict(
                    model,
                    [masked[row] for row in chosen],
                    ids=[ids[row] for row in chosen],
                    pad_id=tokenizer.special_ids["pad"],
                    vocabulary_size=tokenizer.size,
                    top_k=scoring.top_k,
                    sampling=scoring.sampling,
                    dtype=dtype,
                    seed=seed,
                )
                for row, prediction in zip(chosen, predictions, strict=True):
                    example = masked[row]
                    found[row] = ScoredExample(
                        ids[row], example.input_ids, example.positions, example.gold,
                        prediction.gold_logprobs, prediction.top_ids, prediction.top_logprobs,
                    )  # fmt: skip
            done = sum(len(masked[row].input_ids) for row in batch)
            tokens += done
            progress(len(batch), done)
        writer.write(index, [example for example in found if example is not None])
        seconds += time.perf_counter() - started
    # Timing stays out of the manifest, whose bytes are the same for the same inputs.
    return writer.finish({}) | {"tokens_scored": tokens, "seconds": seconds}


def _rows(index: int, total: int, size: int) -> range:
    return range(index * size, min((index + 1) * size, total))


def _ahead(
    prepare: Callable[[int], tuple[list[int], list[Masked]]], indices: list[int]
) -> Iterator[tuple[int, tuple[list[int], list[Masked]]]]:
    """Prepare the next shard (tokenise, mask) while this one is scored."""
    with ThreadPoolExecutor(1) as pool:
        futures = [pool.submit(prepare, index) for index in indices[:1]]
        for place, index in enumerate(indices):
            ready = futures[place].result()
            if place + 1 < len(indices):
                futures.append(pool.submit(prepare, indices[place + 1]))
            futures[place] = None  # type: ignore[call-overload]
            yield index, ready
