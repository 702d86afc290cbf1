"""The page of an extraction: teacher beside student, and each loss in a figure of its own."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from polydistill.artefacts import artefact_places
from polydistill.config.yaml_text import read_resolved
from polydistill.disk import Json, read_json
from polydistill.reports.figures import curves, grouped_bars, logged
from polydistill.reports.records import summary_of

MODELS = ("teacher", "adapted", "student")
LOSSES = {
    "kd_loss": "KD",
    "mlm_loss": "MLM",
    "cosine_loss": "cosine",
    "relation_loss": "relation",
    "logits_loss": "logits",
}


def gather_extract(run: Path) -> Json:
    """The page's own values, read from the run's JSON files."""
    recipe = read_resolved(run / "recipe.yaml")
    evaluation = read_json(run / "evaluation" / "mlm.json")
    log = read_json(run / "student" / "log.json")["log"]
    rows = evaluation["languages"][recipe["language"]]
    corpus = artefact_places(run)[f"corpora/{recipe['language']}"]
    return {
        # The first row of each; they guess the same tokens, see pipelines.extract.evaluation.
        **{name: next((row for row in rows if row["model"] == name), None) for name in MODELS},
        "difference": summary_of(evaluation)["D"]["student"]["all"],
        "results": rows,
        "mrr_figure": Markup(_mrr_figure(rows)),
        # Separate, as in the paper's figure 1: their scales differ.
        "loss_figures": [
            (label, Markup(curves({label: points}, xlabel="step", ylabel=label)))
            for name, label in LOSSES.items()
            if (points := logged(log, name))
        ],
        "samples": read_json(run / "evaluation" / "samples.json")[recipe["language"]],
        "initialisation": read_json(run / "student" / "final" / "initialisation.json"),
        "vocabulary": read_json(run / "tokenizer" / "vocabulary.json"),
        "cost": _cost(run / "cost" / "cost.json"),
        "statistics": read_json(corpus / "statistics.json"),
    }


def _cost(path: Path) -> list[Json]:
    """Teacher's and student's cost for each batch size and part of the model; [] if it was not measured."""
    if not path.is_file():
        return []
    rows: dict[tuple[int, int, str], Json] = {}
    for row in read_json(path):
        pair = rows.setdefault((row["batch"], row["length"], row["part"]), {})
        pair[row["model"]] = row
    return [
        {"texts": texts, "tokens": tokens, "part": "encoder" if part == "encoder" else "with MLM head"} | pair
        for (texts, tokens, part), pair in rows.items()
        if len(pair) == 2 and all(cost["seconds"] is not None for cost in pair.values())
    ]


def _mrr_figure(rows: list[Json]) -> str:
    """Baseline, teacher and student on each text: the same masked tokens, ranked among the same pieces."""
    shared = [row for row in rows if row["tokenizer"] == rows[0]["tokenizer"]]
    texts = list(dict.fromkeys(row["text"] for row in shared))
    names = [name for name in MODELS if any(row["model"] == name for row in shared)]
    series: dict[str, list[float | None]] = {name: [] for name in ("unigram", *names)}
    for text in texts:
        of_text = {row["model"]: row for row in shared if row["text"] == text}
        series["unigram"].append(of_text["student"]["unigram_mrr"])
        for model, row in of_text.items():
            series[model].append(row.get("mrr_teacher_pieces", row["mrr"]))
    return grouped_bars(texts, series, ylabel="MRR")
