"""English with two teachers of the demo: all copies, the best copy, and each teacher alone, at equal steps, in one table.

Usage, after `make demo`: python recipes/two-teachers/compare.py [DEMO] [OUT] [STEPS]
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from polydistill.config import parse_recipe
from polydistill.config.load import read_recipe
from polydistill.files import read_json
from polydistill.recipes import run_recipe
from polydistill.recipes.demo import DATA

USES = ("all", "best", "en", "en-de")


def main(demo: Path, out: Path, steps: int) -> None:
    """Run the four merges on one pair of stores and print the table."""
    rows = {}
    for use in USES:
        values = read_recipe("demo-merge") | {
            "name": f"two-teachers-{use}",
            "output": str(out / use),
            "reuse": [str(out / USES[0])] if use != USES[0] else [],
            "teachers": {
                name: str(demo / "teachers" / name / "student" / "final") for name in ("en", "en-de")
            },
            "languages": {"en": {"text": str(DATA / "en.txt.xz"), "teachers": ["en", "en-de"], "use": use}},
        }
        run = run_recipe(
            parse_recipe(values, [f"training.max_steps={steps}", "training.learning_rate=3e-3", "evaluation.max_examples=1000", "student.init=random",
                                  "student.model_type=modernbert", "student.config.hidden_size=128",
                                  "student.config.num_hidden_layers=4", "student.config.num_attention_heads=4",
                                  "student.config.intermediate_size=256", "student.config.max_position_embeddings=128"]),
            until="evaluate",
        )  # fmt: skip
        rows[use] = read_json(run / "evaluation" / "mlm.json")["languages"]["en"]
    table = Table(title=f"English, two teachers, {steps} steps from random weights: MRR on held-out text")
    for name in ("use", "union", "en's tokenizer", "en-de's tokenizer"):
        table.add_column(name)
    for use, found in rows.items():
        students = {row["teacher"]: row["mrr"] for row in found if row["model"] == "student"}
        table.add_row(use, *(f"{students[teacher]:.3f}" for teacher in (None, "en", "en-de")))
    teachers = {row["model"]: row["mrr"] for row in rows["all"] if row["model"] != "student"}
    unigram = {row["teacher"]: row["unigram_mrr"] for row in rows["all"]}
    table.add_section()
    table.add_row("the teacher", "", *(f"{teachers[name]:.3f}" for name in ("en", "en-de")))
    table.add_row("unigram", *(f"{unigram[name]:.3f}" for name in (None, "en", "en-de")))
    Console().print(table)


if __name__ == "__main__":
    given = sys.argv[1:]
    demo, out, steps = [*given, *["demo-run", "runs/two-teachers", "700"][len(given) :]]
    main(Path(demo), Path(out), int(steps))
