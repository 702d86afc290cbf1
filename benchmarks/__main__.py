"""python -m benchmarks NAME [ARGUMENTS]; `all` runs every one with its defaults. Writes benchmarks/results/NAME.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import scoring, step, trim

BENCHES = {"scoring": scoring.run, "step": step.run, "trim": trim.run}


def main() -> None:
    """Run one bench or all and print what they measured."""
    name, *arguments = sys.argv[1:] or ["all"]
    if name != "all" and name not in BENCHES:
        sys.exit(f"no bench {name!r}; there are {', '.join(BENCHES)}")
    for bench in BENCHES if name == "all" else [name]:
        measured = BENCHES[bench](*arguments)
        print(json.dumps(measured, indent=2))
        target = Path(__file__).parent / "results" / f"{bench}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")


main()
