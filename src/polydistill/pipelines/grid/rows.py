"""The rows of a grid's table: every measure of every run."""

from __future__ import annotations

from pathlib import Path

from polydistill.disk import Json, read_json
from polydistill.reports.card_embed import embed_rows


def grid_rows(folder: Path, name: str) -> list[Json]:
    """One row for each language, text, model and tokenizer of a run, each task of its probes and
    fine-tuning, and each measure of a sentence encoder.
    """
    mlm, probes, tuned, embedded = (
        folder / "evaluation" / f"{kind}.json" for kind in ("mlm", "probes", "finetune", "embed")
    )
    rows: list[Json] = []
    if mlm.is_file():
        rows += [
            {
                "run": name,
                "place": f"{language}, {row['text']}",
                "language": language,
                "text": row["text"],
                "model": row["model"],
                "tokenizer": row["tokenizer"],
                "teacher": row["teacher"],
                "measure": "MRR",
                "value": row["mrr"],
                "error": row["mrr_error"],
                "masked": row["num_masked"],
                "examples": row["num_examples"],
            }
            for language, rows_of in read_json(mlm)["languages"].items()
            for row in rows_of
        ]
    if probes.is_file():
        rows += [
            _of_task(name, f"{task}, {group}, {kind.replace('_', ' ')}", model, metric, cell)
            for task, metrics in read_json(probes)["summary"].items()
            for metric, models in metrics.items()
            for model, groups in models.items()
            for group, kinds in groups.items()
            for kind, cell in kinds.items()
            if cell
        ]
    if tuned.is_file():
        rows += [
            _of_task(name, f"{task}, {target}", model, metric, cell)
            | {"task": task, "target": target, "metric": metric}
            for task, metrics in read_json(tuned).get("summary", {}).items()
            for metric, models in metrics.items()
            for model, targets in models.items()
            for target, cell in targets.items()
        ]
    if embedded.is_file():
        rows += [
            _of_task(name, row["on"], model, row["measure"], {"mean": value, "deviation": None})
            for row in embed_rows(read_json(embedded, dict))
            for model, value in row["values"].items()
            if value is not None
        ]
    return rows


def _of_task(name: str, place: str, model: str, metric: str, cell: Json) -> Json:
    return {
        "run": name,
        "place": place,
        "model": model,
        "tokenizer": None,
        "teacher": None,
        "measure": metric.replace("_", " "),
        "value": cell["mean"],
        "error": cell["deviation"],
    }
