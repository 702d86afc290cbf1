"""A run's evaluation as a table for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from polydistill.disk import read_json
from polydistill.recipes.cost import cost_tables
from polydistill.recipes.finetune_results import finetune_tables
from polydistill.recipes.grid_tables import grid_tables
from polydistill.recipes.probe import probe_tables
from polydistill.recipes.records import check_evaluation
from polydistill.reports.card import FEW_MASKED, with_error

CAPTION = """MRR: mean of 1/rank of the masked token ± its standard error over examples. MRR*: ranked among the pieces that both have.
Unigram: MRR of pieces ranked by their frequency, context unread."""


def results_table(path: Path) -> Table | Group:
    """A run's evaluation: probes' or fine-tuning's tables, or one row for each language, text, model and tokenizer, 80 columns wide; of
    an extraction, what serving costs too.
    """
    if (path / "evaluation" / "grid.json").is_file():
        return Group(*grid_tables(path))
    if not (path / "evaluation" / "mlm.json").is_file() and (path / "evaluation" / "probes.json").is_file():
        return Group(*probe_tables(path))
    if (path / "evaluation" / "finetune.json").is_file():
        return Group(*finetune_tables(path))
    results = check_evaluation(path / "evaluation" / "mlm.json")
    difference = results["summary"].get("D")
    caption = CAPTION
    if isinstance(difference, float):
        caption += f"\nD, mean over languages of student - best teacher on held-out text: {difference:+.3f}"
    few = [
        f"{language} {row['text']} ({row['num_masked']:,})"
        for language, rows in results["languages"].items()
        for row in rows
        if row["num_masked"] < FEW_MASKED
    ]
    if few:
        caption += (
            f"\nFewer than {FEW_MASKED} masked tokens, too few to compare by: {', '.join(dict.fromkeys(few))}"
        )
    table = Table(
        title=escape(str(path)), caption=caption, caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    for name in ("", "text", "model", "tokenizer"):
        table.add_column(name, overflow="fold")
    for name in ("MRR", "MRR*", "top-1", "top-5", "loss", "unigram"):
        table.add_column(name, justify="right", no_wrap=True)
    for language, rows in results["languages"].items():
        for row in rows:
            restricted = row.get("mrr_teacher_pieces")
            table.add_row(
                language,
                row["text"],
                row["model"],
                str(row["teacher"]) if row["tokenizer"] == "own" else row["tokenizer"],
                with_error(row),
                "" if restricted is None else f"{restricted:.3f}",
                f"{row['top1']:.3f}",
                f"{row['top5']:.3f}",
                f"{row['loss']:.2f}",
                f"{row['unigram_mrr']:.3f}",
            )
        table.add_section()
    if isinstance(difference, dict):
        probes = probe_tables(path) if (path / "evaluation" / "probes.json").is_file() else []
        return Group(table, _balance_table(difference), *probes)
    cost = path / "cost" / "cost.json"
    return Group(table, cost_tables(read_json(cost))) if cost.is_file() else table


def _balance_table(difference: dict[str, dict[str, dict[str, float]]]) -> Table:
    """D of each student and group of languages, in hundredths of MRR."""
    table = Table(
        box=box.SIMPLE, caption_justify="left",
        caption="D: mean over languages of a student's MRR minus the language's teacher's, in hundredths; ± makes a "
        "95 % interval,\nwhich knows the chance of the texts, not of the seed.",
    )  # fmt: skip
    table.add_column("D")
    for group in next(iter(difference.values())):
        table.add_column(group, justify="right")
    for student, groups in difference.items():
        cells = [
            f"{100 * cell['value']:+.1f} ± {50 * (cell['high'] - cell['low']):.1f}"
            for cell in groups.values()
        ]
        table.add_row(student, *cells)
    return table
