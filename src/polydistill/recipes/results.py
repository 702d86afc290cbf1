"""A run's evaluation as a table for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from polydistill.files import read_json


def results_table(path: Path) -> Table:
    """One row for each language, text, model and tokenizer of a run's evaluation/mlm.json."""
    results = read_json(path / "evaluation" / "mlm.json")
    difference = results["summary"].get("D")
    caption = "MRR: mean of 1/rank of the masked token. Unigram: pieces ranked by frequency, context unread."
    if difference is not None:
        caption += f"\nD, mean over languages of student - best teacher (MRR): {difference:+.3f}"
    table = Table(title=f"{path}: held-out text", caption=caption, caption_justify="left")
    for name in ("language", "text", "model", "tokenizer"):
        table.add_column(name)
    for name in ("MRR", "of teacher's pieces", "top-1", "top-5", "loss", "unigram MRR", "masked"):
        table.add_column(name, justify="right")
    for language, rows in results["languages"].items():
        for row in rows:
            restricted = row.get("mrr_teacher_pieces")
            table.add_row(
                language,
                row["text"],
                row["model"],
                row["tokenizer"] if row["tokenizer"] == "union" else f"own ({row['teacher']})",
                f"{row['mrr']:.3f}",
                "" if restricted is None else f"{restricted:.3f}",
                f"{row['top1']:.3f}",
                f"{row['top5']:.3f}",
                f"{row['loss']:.2f}",
                f"{row['unigram_mrr']:.3f}",
                f"{row['num_masked']:,}",
            )
        table.add_section()
    return table
