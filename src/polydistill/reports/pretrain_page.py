"""The page of a pre-training: one model beside the unigram baseline, in each language and text."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from polydistill.artefacts import artefact_places
from polydistill.config.yaml_text import read_resolved
from polydistill.disk import Json, read_json
from polydistill.reports.figures import curves, grouped_bars, logged


def gather_pretrain(run: Path) -> Json:
    """The page's own values, read from the run's JSON files."""
    recipe = read_resolved(run / "recipe.yaml")
    results = read_json(run / "evaluation" / "mlm.json")["languages"]
    log = read_json(run / "student" / "log.json")
    config = read_json(run / "student" / "final" / "config.json")
    places = artefact_places(run)
    return {
        "size": config["vocab_size"],
        "results": results,
        "mrr_figure": Markup(_mrr_figure(results)),
        "loss_figure": Markup(_loss_figure(log["log"], list(recipe["languages"]))),
        "languages": [
            {
                "name": language,
                "share": log["probabilities"][language],
                "statistics": read_json(places[f"corpora/{language}"] / "statistics.json"),
            }
            for language in recipe["languages"]
        ],
    }


def _mrr_figure(results: dict[str, list[Json]]) -> str:
    rows = {
        language if row["text"] == "held_out" else f"{language}, {row['text']}": row
        for language, rows_of in results.items()
        for row in rows_of
    }
    series = {
        "unigram": [row["unigram_mrr"] for row in rows.values()],
        "model": [row["mrr"] for row in rows.values()],
    }
    return grouped_bars(list(rows), series, ylabel="MRR")


def _loss_figure(log: list[dict[str, float]], languages: list[str]) -> str:
    series = {name: points for name in languages if (points := logged(log, f"loss_{name}"))}
    return curves(series, xlabel="step", ylabel="MLM loss, nats")
