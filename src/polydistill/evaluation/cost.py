"""The cost of serving a model: latency and peak memory, each measured in a separate process.

`python -m polydistill.evaluation.cost MODEL BATCH LENGTH PART CALLS OPTIONS` prints one measurement as JSON.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from polydistill.errors import ModelError
from polydistill.models.kinds import kind_of_model, load_kind
from polydistill.models.load import model_config, weights_size
from polydistill.models.onnx_runtime import OnnxModel
from polydistill.models.precision import device
from polydistill.reports.progress import Count, uncounted
from polydistill.tokenization.load import max_positions

Part = Literal["encoder", "model"]
Clock = Literal["wall", "processor"]
# What is known of a model, or the options of its measurement.
Facts = Mapping[str, Any]
# (texts, tokens): that of Eliquare's table 3, and that of a service.
SHAPES = ((32, 512), (1, 128))
# Logits and their copies may take at most this share of the available memory.
MEMORY_SHARE = 0.4


def compare_cost(
    models: Sequence[str],
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rounds: int = 3,
    calls: int = 5,
    loading: Mapping[str, Facts] | None = None,
    names: Mapping[str, str] | None = None,
    say: Callable[[str], None] | None = None,
    count: Count = uncounted,
) -> list[dict[str, Any]]:
    """A row for each model, shape and part: medians over fresh processes.

    Models take turns, so that a machine that grows warm or busy affects all of them.
    shapes   (texts, tokens); a model with a smaller limit gets as many tokens as it accepts
    rounds   processes per row
    calls    timed forward passes per process, after one that warms up
    loading  model → `revision` and `allow_pickle` of `load_masked_lm`, where they are needed
    names    model → its name in what is said; by default the model itself
    say      takes a line for each row
    count    takes each measurement
    Rows hold `seconds` and `peak_bytes` (without the process's memory before the model), both None where
    logits would not fit into memory; `parameters`, `embedding_parameters`, `file_bytes`. On a CPU in float32.
    Raises ModelError for a model that cannot be loaded.
    """
    facts = {model: describe(model, **(loading or {}).get(model, {})) for model in models}
    return measure_in_turns(
        facts, shapes=shapes, rounds=rounds, calls=calls, loading=loading, names=names, say=say, count=count
    )


def measure_in_turns(
    facts: Mapping[str, Facts],
    *,
    shapes: Sequence[tuple[int, int]],
    rounds: int,
    calls: int,
    parts: Sequence[Part] = ("encoder", "model"),
    threads: int = 0,
    loading: Mapping[str, Facts] | None = None,
    names: Mapping[str, str] | None = None,
    say: Callable[[str], None] | None = None,
    count: Count = uncounted,
) -> list[dict[str, Any]]:
    """`compare_cost` for models with known facts, from `describe` or elsewhere.

    facts    model → further values of its rows, among them `pieces` and `max_tokens`; a name that ends in
             `.onnx` is an exported model, which has no separate encoder
    threads  of each process, which then stays on the CPU; 0: torch's default, and the GPU if there is one
    """
    rows = []
    done, total = 0, len(shapes) * len(parts) * rounds * len(facts)
    options = {model: {"threads": threads, **(loading or {}).get(model, {})} for model in facts}
    for batch, length in shapes:
        for part in parts:
            measurements: dict[str, list[dict[str, float]]] = {model: [] for model in facts}
            for _ in range(rounds):
                for model in facts:
                    count("cost", done, total, "measurements")
                    done += 1
                    tokens = min(length, facts[model]["max_tokens"])
                    if part == "encoder" or _fits(facts[model], batch, tokens):
                        measured = in_a_process(model, batch, tokens, part, calls, options[model])
                        measurements[model].append(measured)
            for model, each in measurements.items():
                medians = {
                    name: statistics.median(measured[name] for measured in each) if each else None
                    for name in ("seconds", "peak_bytes")
                }
                tokens = min(length, facts[model]["max_tokens"])
                rows.append(
                    {"model": model, "batch": batch, "length": tokens, "part": part}
                    | medians
                    | dict(facts[model])
                )
                if say is not None:
                    say(_in_words(rows[-1], (names or {}).get(model, model)))
    count("cost", total, total, "measurements")
    return rows


def _in_words(row: Facts, name: str) -> str:
    what = f"{name}, {row['part']}, {row['batch']} x {row['length']} tokens"
    if row["seconds"] is None:
        return f"{what}: its logits do not fit into memory"
    return f"{what}: {row['seconds']:.3g} s, {row['peak_bytes'] / 2**20:,.0f} MiB"


def describe(model: str, *, revision: str | None = None, allow_pickle: bool = False) -> dict[str, Any]:
    """Parameters, those in tables with a row per piece, bytes of weight files, pieces, largest length."""
    loaded, _, _ = load_kind(model, revision=revision, allow_pickle=allow_pickle)
    rows = loaded.config.vocab_size
    tables = [weight.numel() for weight in loaded.parameters() if weight.dim() == 2 and rows in weight.shape]
    return {
        "parameters": loaded.num_parameters(),
        "embedding_parameters": sum(tables),
        "file_bytes": weights_size(model, revision=revision),
        "pieces": rows,
        "max_tokens": max_positions(loaded.config),
    }


def _fits(facts: Facts, batch: int, length: int) -> bool:
    return float(batch * length * facts["pieces"] * 4) < MEMORY_SHARE * psutil.virtual_memory().available


def in_a_process(
    model: str, batch: int, length: int, part: str, calls: int, options: Facts
) -> dict[str, float]:
    """`measure_cost` in a fresh process. Raises ModelError if the process fails."""
    what = [str(batch), str(length), part, str(calls), json.dumps(options)]
    arguments = [sys.executable, "-m", __name__, model, *what]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ModelError(
            "model",
            model,
            f"could not be measured ({done.stderr.strip().splitlines()[-1:]})",
            "check that the machine has enough memory for it",
        )
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
    threads: int = 0,
    clock: Clock = "wall",
    revision: str | None = None,
    allow_pickle: bool = False,
) -> dict[str, float]:
    """Median seconds of a forward pass in this process, and peak memory for the model.

    clock  `processor` counts the seconds of all threads together, on a machine with other jobs
    """
    if threads:
        torch.set_num_threads(threads)
    if model.endswith(".onnx"):
        return _measure_onnx(Path(model), batch, length, calls, threads, clock)
    config = model_config(model, revision=revision)
    # Without weights: loads the architecture's code, larger than a small model, before memory counts.
    with torch.device("meta"):
        kind_of_model(config, model).auto.from_config(config)
    before = psutil.Process().memory_info().rss
    where = torch.device("cpu") if threads else device()
    on_gpu = where.type == "cuda"
    loaded = load_kind(model, revision=revision, allow_pickle=allow_pickle)[0].to(where)
    runs = loaded.base_model if part == "encoder" else loaded
    ids = _random_ids(loaded.config.vocab_size, batch, min(length, max_positions(config))).to(where)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def call() -> None:
        runs(**inputs)
        if on_gpu:
            torch.cuda.synchronize()

    seconds = _median_seconds(call, calls, clock)
    peak = torch.cuda.max_memory_allocated() if on_gpu else max(0, _high_water() - before)
    return {"seconds": seconds, "peak_bytes": float(peak)}


def _measure_onnx(
    path: Path, batch: int, length: int, calls: int, threads: int, clock: Clock
) -> dict[str, float]:
    import onnxruntime  # noqa: F401 - loads its code before memory counts

    folder = path.parent if (path.parent / "config.json").is_file() else path.parent.parent
    config = model_config(str(folder))
    before = psutil.Process().memory_info().rss
    loaded = OnnxModel(path, threads=threads)
    ids = _random_ids(config.vocab_size, batch, min(length, max_positions(config)))
    attention = torch.ones_like(ids)
    seconds = _median_seconds(lambda: loaded.outputs(ids, attention), calls, clock)
    return {"seconds": seconds, "peak_bytes": float(max(0, _high_water() - before))}


def _random_ids(rows: int, batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, rows, (batch, length), generator=torch.Generator().manual_seed(0))


def _median_seconds(call: Callable[[], object], calls: int, clock: Clock) -> float:
    """Over `calls` calls, after one that warms up."""
    now = time.perf_counter if clock == "wall" else time.process_time
    seconds = []
    for _ in range(1 + calls):
        started = now()
        call()
        seconds.append(now() - started)
    return statistics.median(seconds[1:])


def _high_water() -> int:
    """The peak memory of this process in bytes.

    getrusage is only the fallback: on Linux it includes the memory of the process that started this one.
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
