"""python -m benchmarks NAME [ARGUMENTS]; `all` runs every benchmark with its defaults.

Prints the measurements, writes benchmarks/results/NAME.json, and writes docs/performance.md from all results.
`gpu` runs step, scoring and sooner at sizes for a GPU, within ten minutes; `gpu tiny` tries them and writes
nothing.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks import cluster, gpu, parts, prepare, scale, scoring, sooner, step, trim, vocab
from benchmarks.page import RESULTS, write_page
from polydistill.pipelines.run_folder import environment

BENCHES = {
    "scoring": scoring.run,
    "ray": cluster.run,
    "step": step.run,
    "sooner": sooner.run,
    "parts": parts.run,
    "scale": scale.run,
    "prepare": prepare.run,
    "trim": trim.run,
    "vocab": vocab.run,
}


def main() -> None:
    """Run one benchmark, those of a GPU, or all, and print the measurements."""
    name, *arguments = sys.argv[1:] or ["all"]
    if name not in ("all", "gpu") and name not in BENCHES:
        sys.exit(f"no bench {name!r}; there are gpu, {', '.join(BENCHES)}")
    if name != "gpu":
        for bench in BENCHES if name == "all" else [name]:
            measure(bench, arguments)
    else:
        size = arguments[0] if arguments else "gpu"
        if size not in gpu.SIZES:
            sys.exit(f"no size {size!r}; there are {', '.join(gpu.SIZES)}")
        started = time.perf_counter()
        for bench, chosen in gpu.SIZES[size].items():
            measure(bench, list(chosen), variant=size, keep=size != "tiny")
        print(f"in {(time.perf_counter() - started) / 60:.1f} minutes")
        if size == "tiny":
            return
    print(write_page())


def measure(bench: str, arguments: list[str], *, variant: str = "", keep: bool = True) -> None:
    """Run a benchmark, print what it measured, and keep it as BENCH-VARIANT.json.

    variant  by default the arguments that are names
    """
    measured = BENCHES[bench](*arguments)
    print(json.dumps(measured, indent=2))
    if not keep:
        return
    known = environment()
    where = {key: known[key] for key in ("cores", "processor", "gpu")} | {"torch": known["packages"]["torch"]}
    # A model's folder is private to this machine: record its name alone.
    shown = [_short([Path(part).name for part in argument.split(",")]) or "''" for argument in arguments]
    record = {
        "command": " ".join([bench, *shown]),
        "date": time.strftime("%Y-%m-%d"),
        "where": where,
        "measured": measured,
    }
    names = (
        [variant]
        if variant
        else [
            "-".join(part.partition(".")[0] for part in a.split(","))
            for a in shown
            if any(c.isalpha() for c in a)
        ]
    )
    target = RESULTS / f"{'-'.join([bench, *names])}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def _short(parts: list[str]) -> str:
    return ",".join(parts) if len(parts) < 5 else f"{len(parts)}-texts"


main()
