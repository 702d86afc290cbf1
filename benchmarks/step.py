"""A student's training step beside transformers' Trainer, with and without a teacher, and TextBrewer."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.contestants import SHAPES
from benchmarks.measure import peak_products
from polydistill.models.precision import resolve_dtype

# Contestant → number types that it runs in. TextBrewer has no bfloat16 on a CPU.
CONTESTANTS = {"ours": 2, "ours-gold": 2, "trainer-teacher": 2, "textbrewer": 1, "trainer-plain": 2}


def number_types() -> list[str]:
    """float32, and the type of `precision: auto` if it differs: bfloat16 needs hardware to be meaningful."""
    return list(dict.fromkeys(["float32", str(resolve_dtype("auto")).removeprefix("torch.")]))


def run(shape: str = "middle", rounds: str = "3", steps: str = "3", peers: str = "all") -> dict[str, object]:
    """Every contestant in turn, each in a fresh process, `rounds` times; medians over all steps.

    shape   a name in SHAPES
    steps   timed steps of a peer in each round; ours is faster and takes ten times as many
    peers   names of contestants beside ours, separated by commas: a dense teacher of a large vocabulary may
            not fit into memory
    """
    sizes = SHAPES[shape]
    types = number_types()
    field = [
        (name, dtype)
        for name, known in CONTESTANTS.items()
        for dtype in types[:known]
        if name.startswith("ours") or peers == "all" or name in peers.split(",")
    ]
    seconds: dict[str, list[float]] = {}
    last: dict[str, dict[str, Any]] = {}
    peaks: list[float] = []
    for _ in range(int(rounds)):
        peaks.append(peak_products())
        for name, dtype in field:
            key = f"{name}, {dtype}"
            count = int(steps) * (10 if name.startswith("ours") else 1)
            measured = contestant(shape, name, dtype, count)
            if measured is None:
                continue
            # The first step warms up caches and allocators: `seconds` begins after it.
            seconds.setdefault(key, []).extend(measured.pop("seconds"))
            last[key] = measured
            print(f"{key}: {statistics.median(seconds[key]):.3f} s a step", file=sys.stderr, flush=True)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    # A run's default is the last type.
    best = f"ours, {types[-1]}"
    mine = medians[best]
    tokens = sizes.sequences * sizes.length
    flops = sizes.flops()
    return {
        "shape": sizes.describe(),
        "tokens": tokens,
        "seconds_a_step": {key: round(value, 3) for key, value in medians.items()},
        "steps_measured": {key: len(values) for key, values in seconds.items()},
        "tokens_per_second": {key: round(tokens / value) for key, value in medians.items()},
        "ours_is_so_many_times_as_fast": {key: round(value / mine, 2) for key, value in medians.items()},
        "and_in_the_same_number_type": {
            key: round(value / medians[f"ours, {key.rpartition(', ')[2]}"], 2)
            for key, value in medians.items()
        },
        "peak_mebibytes": {key: round(value["peak_bytes"] / 2**20) for key, value in last.items()},
        "soft_over_gold": round(mine / medians[f"ours-gold, {types[-1]}"], 3),
        "peak_products_teraflops": round(statistics.median(peaks) / 1e12, 3),
        "ours_share_of_peak": round(flops / mine / statistics.median(peaks), 3),
        "number_type_of_a_run": types[-1],
        "waiting_share": last[best]["waiting_share"],
    }


def contestant(shape: str, name: str, dtype: str, steps: int) -> dict[str, Any] | None:
    """The figures that a contestant prints; None, with a line on standard error, if it cannot run here."""
    command = [sys.executable, "-m", "benchmarks.contestants", shape, name, dtype, str(steps + 1)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        print(f"{name}, {dtype}: did not run ({reason[0]})", file=sys.stderr, flush=True)
        return None
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured
