"""A run's evaluation as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from polydistill.disk import Json, read_json
from polydistill.reports.card_embed import embed_rows, shown
from polydistill.reports.card_results import FEW_MASKED, with_error
from polydistill.reports.finetune_tables import finetune_tables
from polydistill.reports.grid_tables import grid_tables
from polydistill.reports.records import check_evaluation, summary_of

CAPTION = """MRR: mean of 1/rank of the masked token ± its standard error over examples.
MRR*: ranked among the pieces that both have.
Unigram: MRR of pieces ranked by their frequency, without context."""

CAPTION_WORDS = """Nats/char: negative log-likelihood of hidden words, the same for all models.
MRR, top-1 and loss are of each model's own tokens, which differ: they compare no models.
Unigram: MRR of pieces ranked by their frequency, without context."""


def results_table(path: Path) -> Table | Group:
    """A run's evaluation, 80 columns wide.

    The tables of a grid, of probes or of fine-tuning, or one with a row for each language, text, model and
    tokenizer; for an extraction also the cost of serving.
    """
    if (path / "evaluation" / "grid.json").is_file():
        return Group(*grid_tables(path))
    if not (path / "evaluation" / "mlm.json").is_file() and (path / "evaluation" / "probes.json").is_file():
        return Group(*probe_tables(path))
    if (path / "evaluation" / "finetune.json").is_file():
        return Group(*finetune_tables(path))
    if (path / "evaluation" / "embed.json").is_file():
        return _embed_table(path)
    return _mlm_table(path)


def _mlm_table(path: Path) -> Table | Group:
    """The table of masked tokens, with a balanced run's differences or the cost of serving below."""
    results = check_evaluation(path / "evaluation" / "mlm.json")
    difference = summary_of(results)["D"]
    caption = CAPTION
    if list(difference) == ["student"] and "all" in difference["student"]:
        cell = difference["student"]["all"]
        caption += (
            f"\nD, mean over languages of student - best teacher on held-out text: {cell['value']:+.3f}"
        )
        if "low" in cell:
            caption += f" ({cell['low']:+.3f} to {cell['high']:+.3f})"
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
    # A student with a vocabulary of its own is compared by the likelihood of words.
    by_words = any("nats_per_character" in row for rows in results["languages"].values() for row in rows)
    measures = ["MRR", "MRR*", "top-1", "top-5", "loss", "unigram"]
    if by_words:
        table.caption = CAPTION_WORDS
        measures = ["MRR", "top-1", "loss", "unigram", "nats/char"]
    for name in measures:
        table.add_column(name, justify="right", no_wrap=True)
    for language, rows in results["languages"].items():
        for row in rows:
            restricted = row.get("mrr_teacher_pieces")
            cells = {
                "MRR": with_error(row),
                "MRR*": "" if restricted is None else f"{restricted:.3f}",
                "top-1": f"{row['top1']:.3f}",
                "top-5": f"{row['top5']:.3f}",
                "loss": f"{row['loss']:.2f}",
                "unigram": f"{row['unigram_mrr']:.3f}",
                "nats/char": f"{row['nats_per_character']:.3f}" if by_words else "",
            }
            table.add_row(
                language,
                row["text"],
                row["model"],
                str(row["teacher"]) if row["tokenizer"] == "own" else row["tokenizer"],
                *(cells[name] for name in measures),
            )
        table.add_section()
    if difference and list(difference) != ["student"]:
        probes = probe_tables(path) if (path / "evaluation" / "probes.json").is_file() else []
        return Group(table, _balance_table(difference), *probes)
    cost = path / "cost" / "cost.json"
    return Group(table, cost_tables(read_json(cost))) if cost.is_file() else table


def _embed_table(path: Path) -> Table:
    """The measures of a distilled sentence encoder, its start and its teacher."""
    results = check_evaluation(path / "evaluation" / "embed.json")
    table = Table(
        title=escape(str(path)),
        box=box.SIMPLE,
        caption_justify="left",
        caption="start: the student before training, with its linear layer fitted if it has one",
    )
    for name in ("measure", "on", "items", *results["models"]):
        table.add_column(name, justify="left" if name in ("measure", "on") else "right")
    for row in embed_rows(results):
        cells = [shown(row["values"].get(model)) for model in results["models"]]
        table.add_row(row["measure"], escape(row["on"]), f"{row['items']:,}", *cells)
    return table


def _balance_table(difference: dict[str, dict[str, dict[str, float]]]) -> Table:
    """D of each student and group of languages, in hundredths of MRR."""
    table = Table(
        box=box.SIMPLE,
        caption_justify="left",
        caption="D: mean over languages of a student's MRR minus the language's teacher's, in hundredths; ± "
        "gives a 95 % interval,\nwhich reflects sampling of the text, not variation between seeds.",
    )
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


def probe_tables(folder: Path) -> list[Table]:
    """Two tables for each task and metric of a finished run: averages, and each pair of languages."""
    results = check_evaluation(folder / "evaluation" / "probes.json")
    tables = []
    for task, metrics in results["summary"].items():
        for metric, models in metrics.items():
            name = f"{task}, {metric.replace('_', ' ')}"
            groups = list(next(iter(models.values())))
            table = Table(title=f"{name}: mean ± standard deviation over seeds", box=box.SIMPLE)
            table.add_column("", no_wrap=True)
            for group in groups:
                table.add_column(f"{group}: in language", justify="right")
                table.add_column(f"{group}: zero-shot", justify="right")
            for model, cells_of in models.items():
                cells = [
                    _shown(cells_of[group][kind]) for group in groups for kind in ("in_language", "zero_shot")
                ]
                table.add_row(escape(model), *cells)
            tables.append(table)
            scores = results["scores"][task]
            table = Table(title=f"{name}: from (rows) to (columns), mean over seeds", box=box.SIMPLE)
            languages = list(next(iter(scores.values())))
            for column in ("", "from", *languages):
                table.add_column(column, justify="right" if column in languages else "left", no_wrap=True)
            for model, cells_of in scores.items():
                for source in languages:
                    row = [f"{np.mean(cells_of[source][target][metric]):.3f}" for target in languages]
                    table.add_row(escape(model) if source == languages[0] else "", source, *row)
            tables.append(table)
    return tables


def _shown(cell: dict[str, float]) -> str:
    return f"{cell['mean']:.3f} ± {cell['deviation']:.3f}" if cell else ""


def cost_tables(rows: Sequence[Json]) -> Group:
    """Sizes, then times and memory. `rows` come from `compare_cost`; speed-ups are over the first model."""
    return Group(_sizes(rows), _times(rows))


def _sizes(rows: Sequence[Json]) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("", "model", "parameters", "without tables", "pieces", "file"):
        table.add_column(name, justify="left" if name in ("", "model") else "right", overflow="fold")
    for number, row in enumerate({row["model"]: row for row in rows}.values(), 1):
        table.add_row(
            str(number),
            escape(row["model"]),
            f"{row['parameters']:,}",
            f"{row['parameters'] - row['embedding_parameters']:,}",
            f"{row['pieces']:,}",
            f"{row['file_bytes'] / 2**20:,.1f} MiB",
        )
    return table


def _times(rows: Sequence[Json]) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("texts x tokens", "part", "model", "latency", "speed-up", "memory"):
        table.add_column(name, justify="right" if name in ("latency", "speed-up", "memory") else "left")
    # Paths are long: the table of sizes maps numbers to models.
    numbers = {
        model: str(number) for number, model in enumerate(dict.fromkeys(row["model"] for row in rows), 1)
    }
    first: dict[tuple[int, str], float | None] = {}
    for row in rows:
        place = (row["batch"], row["part"])
        seconds = row["seconds"]
        base = first.setdefault(place, seconds)
        table.add_row(
            f"{row['batch']} x {row['length']}",
            "encoder" if row["part"] == "encoder" else "with MLM head",
            numbers[row["model"]],
            "no room" if seconds is None else f"{1000 * seconds:,.1f} ms",
            "" if seconds is None or base is None else f"{base / seconds:.2f}",
            "" if seconds is None else f"{row['peak_bytes'] / 2**20:,.0f} MiB",
        )
    return table
