"""What serving a model costs: latency and peak memory, each measured in a process of its own.

`python -m polydistill.evaluation.cost MODEL BATCH LENGTH PART CALLS OPTIONS` prints one measurement as JSON.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from polydistill.errors import ModelError
from polydistill.models import build_student, device, load_masked_lm, model_config, weights_size
from polydistill.tokenization.load import max_positions

Part = Literal["encoder", "model"]
# What Eliquare's table 3 has, and what a service sees.
SHAPES = ((32, 512), (1, 128))
# Logits with copies of them must leave room for everything else.
MEMORY_SHARE = 0.4


def compare_cost(
    models: Sequence[str],
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rounds: int = 3,
    calls: int = 5,
    loading: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """A row for each model, shape and part: medians over fresh processes, in turns, so that a machine that grows warm
    or busy does so for all.

    shapes  (texts, tokens); a model that takes fewer tokens gets as many as it takes
    rounds  processes for each row; calls  forward passes timed in each, after one that warms up
    loading  for models that need it, `revision` and `allow_pickle` of `load_masked_lm`
    Rows hold `seconds` and `peak_bytes` (beyond what the process had before the model), None where logits would not
    fit into memory; `parameters`, `embedding_parameters`, `file_bytes`. On a processor in float32.
    Raises ModelError for a model that cannot be loaded.
    """
    options = {model: dict((loading or {}).get(model, {})) for model in models}
    facts = {model: describe(model, **options[model]) for model in models}
    rows = []
    for batch, length in shapes:
        for part in ("encoder", "model"):
            found: dict[str, list[dict[str, float]]] = {model: [] for model in models}
            for _ in range(rounds):
                for model in models:
                    if part == "encoder" or _fits(facts[model], batch, length):
                        found[model].append(
                            _in_a_process(model, batch, length, part, calls, json.dumps(options[model]))
                        )
            for model in models:
                each = found[model]
                medians = {
                    name: statistics.median(one[name] for one in each) if each else None
                    for name in ("seconds", "peak_bytes")
                }
                tokens = min(length, facts[model]["max_tokens"])
                rows.append(
                    {"model": model, "batch": batch, "length": tokens, "part": part} | medians | facts[model]
                )
    return rows


def describe(model: str, *, revision: str | None = None, allow_pickle: bool = False) -> dict[str, Any]:
    """Parameters, those of them in tables with a row a piece, bytes of the weights' files, pieces, most tokens."""
    loaded = load_masked_lm(model, revision=revision, allow_pickle=allow_pickle)
    rows = loaded.config.vocab_size
    tables = [p.numel() for p in loaded.parameters() if p.dim() == 2 and rows in p.shape]
    return {
        "parameters": loaded.num_parameters(), "embedding_parameters": sum(tables), "file_bytes": weights_size(model, revision=revision),
        "pieces": rows, "max_tokens": max_positions(loaded.config),
    }  # fmt: skip


def _fits(facts: dict[str, Any], batch: int, length: int) -> bool:
    return float(batch * length * facts["pieces"] * 4) < MEMORY_SHARE * psutil.virtual_memory().available


def _in_a_process(
    model: str, batch: int, length: int, part: str, calls: int, options: str
) -> dict[str, float]:
    arguments = [sys.executable, "-m", __name__, model, str(batch), str(length), part, str(calls), options]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ModelError(
            "model", model, f"could not be measured ({done.stderr.strip().splitlines()[-1:]})",
            "see whether the machine has the memory for it",
        )  # fmt: skip
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


@torch.inference_mode()
def measure_cost(
    model: str,
    batch: int,
    length: int,
    part: Part,
    calls: int,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> dict[str, float]:
    """Median seconds of a forward pass of this process, and the most memory that it has taken so far for the model."""
    config = model_config(model, revision=revision)
    # Without weights: the architecture's code, which takes more than a small model, is in memory before it counts.
    build_student(config, seed=0, field="model", device="meta")
    before = psutil.Process().memory_info().rss
    loaded = load_masked_lm(model, revision=revision, allow_pickle=allow_pickle).to(device())
    runs = loaded.base_model if part == "encoder" else loaded
    length = min(length, max_positions(config))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, loaded.config.vocab_size, (batch, length), generator=generator).to(device())
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    seconds = []
    for _ in range(1 + calls):
        started = time.perf_counter()
        runs(**inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else max(0, _high_water() - before)
    return {"seconds": statistics.median(seconds[1:]), "peak_bytes": float(peak)}


def _high_water() -> int:
    """The most bytes that this process has had in memory.

    Not from getrusage where there is another way: Linux counts there what the process that started this one had.
    """
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    name, size, tokens, what, number, how = sys.argv[1:]
    result = measure_cost(name, int(size), int(tokens), what, int(number), **json.loads(how))  # type: ignore[arg-type]
    print(json.dumps(result))
