"""A student's training step beside what people use now: transformers' Trainer with and without a teacher, TextBrewer."""

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

# (contestant, number type): TextBrewer has no bfloat16 on a processor.
FIELD = [
    ("ours", "bfloat16"),
    ("ours-gold", "bfloat16"),
    ("trainer-teacher", "float32"),
    ("trainer-teacher", "bfloat16"),
    ("textbrewer", "float32"),
    ("trainer-plain", "float32"),
    ("trainer-plain", "bfloat16"),
]


def run(shape: str = "middle", rounds: str = "3", steps: str = "3", peers: str = "all") -> dict[str, object]:
    """Every contestant in a fresh process in turn, `rounds` times; medians over all of a contestant's steps.

    shape   of benchmarks/contestants.py
    steps   timed steps of a peer in each round; ours, being faster, takes ten times as many
    peers   names of contestants beside ours, with commas; a large vocabulary leaves no memory for a dense teacher
    """
    sizes = SHAPES[shape]
    field = [
        (name, dtype)
        for name, dtype in FIELD
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
            # The first step of all warms up caches and allocators: `seconds` begins after it.
            seconds.setdefault(key, []).extend(measured.pop("seconds"))
            last[key] = measured
            print(f"{key}: {statistics.median(seconds[key]):.3f} s a step", file=sys.stderr, flush=True)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    mine = medians["ours, bfloat16"]
    tokens = sizes.sequences * sizes.length
    flops = sizes.flops()
    return {
        "shape": sizes.describe(),
        "tokens": tokens,
        "seconds_a_step": {key: round(value, 3) for key, value in medians.items()},
        "steps_measured": {key: len(values) for key, values in seconds.items()},
        "tokens_per_second": {key: round(tokens / value) for key, value in medians.items()},
        "times_faster": {key: round(value / mine, 2) for key, value in medians.items()},
        "peak_mebibytes": {key: round(value["peak_bytes"] / 2**20) for key, value in last.items()},
        "soft_over_gold": round(mine / medians["ours-gold, bfloat16"], 3),
        "peak_products_teraflops": round(statistics.median(peaks) / 1e12, 3),
        "ours_share_of_peak": round(flops / mine / statistics.median(peaks), 3),
        "waiting_share": last["ours, bfloat16"]["waiting_share"],
    }


def contestant(shape: str, name: str, dtype: str, steps: int) -> dict[str, Any] | None:
    """What a contestant prints, or None with a line on standard error where it cannot run here."""
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
