"""Scoring in this process, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydistill.masking import Masked
from polydistill.models.memory import keep_freed_memory, return_freed_memory
from polydistill.models.precision import device
from polydistill.scoring.shards import HasTexts, Job
from polydistill.store.writer import StoreWriter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def score(
    folder: Path,
    job: Job,
    examples: HasTexts,
    model: PreTrainedModel,
    *,
    progress: Callable[[int, int], None] = lambda examples, tokens: None,
) -> dict[str, Any]:
    """Write the store of one teacher over one language's examples into `folder`.

    Existing shards are kept, so an interrupted run resumes. The bytes do not change, for a shard depends only
    on its own examples.
    model     moved to the GPU if there is one
    progress  called with the examples and tokens done since the last call
    Returns the manifest, with `tokens_scored` and `seconds` of this call.
    """
    if device().type == "cpu":
        keep_freed_memory()
    model = model.to(device())
    writer = StoreWriter(folder, job.identity)
    todo = missing_shards(writer, job, examples, progress)
    tokens = seconds = 0.0

    def count(num_examples: int, num_tokens: int) -> None:
        nonlocal tokens
        tokens += num_tokens
        progress(num_examples, num_tokens)

    def prepare(index: int) -> tuple[list[int], list[Masked]]:
        ids, texts = job.read(index, examples)
        return ids, job.mask(ids, texts)

    for index, (ids, masked) in _ahead(prepare, todo):
        started = time.perf_counter()
        writer.write(index, job.score(model, ids, masked, count))
        seconds += time.perf_counter() - started
    return_freed_memory()
    # Without timing, the manifest's bytes are the same for the same inputs.
    return writer.finish({}) | {"tokens_scored": tokens, "seconds": seconds}


def missing_shards(
    writer: StoreWriter, job: Job, examples: HasTexts, progress: Callable[[int, int], None]
) -> list[int]:
    """Indices of the missing shards; `progress` is called for the others."""
    todo, ids = [], examples.ids
    for index in range(job.num_shards(len(examples))):
        rows = job.rows(index, len(examples))
        if writer.has(index, ids[rows.start : rows.stop].tolist()):
            progress(len(rows), 0)
        else:
            todo.append(index)
    return todo


def _ahead(
    prepare: Callable[[int], tuple[list[int], list[Masked]]], indices: list[int]
) -> Iterator[tuple[int, tuple[list[int], list[Masked]]]]:
    """Prepare the next shard (tokenise, mask) while this one is being scored."""
    with ThreadPoolExecutor(1) as pool:
        futures = [pool.submit(prepare, index) for index in indices[:1]]
        for place, index in enumerate(indices):
            ready = futures[place].result()
            if place + 1 < len(indices):
                futures.append(pool.submit(prepare, indices[place + 1]))
            futures[place] = None  # type: ignore[call-overload]
            yield index, ready
