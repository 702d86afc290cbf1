"""python -m benchmarks NAME [ARGUMENTS]; `all` runs every benchmark with its defaults.

Prints the measurements, writes benchmarks/results/NAME.json, and writes docs/performance.md from all results.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks import cluster, parts, scale, scoring, sooner, step, trim, vocab
from benchmarks.page import RESULTS, write_page
from polydistill.pipelines.run_folder import environment

BENCHES = {
    "scoring": scoring.run,
    "ray": cluster.run,
    "step": step.run,
    "sooner": sooner.run,
    "parts": parts.run,
    "scale": scale.run,
    "trim": trim.run,
    "vocab": vocab.run,
}


def main() -> None:
    """Run one benchmark or all, and print the measurements."""
    name, *arguments = sys.argv[1:] or ["all"]
    if name != "all" and name not in BENCHES:
        sys.exit(f"no bench {name!r}; there are {', '.join(BENCHES)}")
    known = environment()
    where = {key: known[key] for key in ("cores", "processor", "gpu")} | {"torch": known["packages"]["torch"]}
    for bench in BENCHES if name == "all" else [name]:
        measured = BENCHES[bench](*arguments)
        print(json.dumps(measured, indent=2))
        # A model's folder is private to this machine: record its name alone.
        shown = [Path(argument).name if "/" in argument else argument or "''" for argument in arguments]
        record = {
            "command": " ".join([bench, *shown]),
            "date": time.strftime("%Y-%m-%d"),
            "where": where,
            "measured": measured,
        }
        target = RESULTS / f"{'-'.join([bench, *(a for a in shown if a and a[0].isalpha())])}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(write_page())


main()
