"""The page of probes: averages, and a heat map from language to language for each model."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from polydistill.disk import Json, read_json
from polydistill.reports.figures import heat_map

TASKS = {"pos": "Parts of speech", "ner": "Entities"}
METRICS = {
    "accuracy": ("accuracy", "Share of words with the right tag."),
    "macro_f1": (
        "token macro-F1",
        "Mean over tags, including O, of each tag's F1 by word: rare tags count as much as common ones.",
    ),
    "entity_f1": ("entity F1", "An entity counts as found if its kind and exact span of words are right."),
}


def gather_probes(run: Path) -> Json:
    """The averages and heat maps of each task and metric, read from the run's JSON file."""
    results = read_json(run / "evaluation" / "probes.json")
    tasks = []
    for task, metrics in results["summary"].items():
        for metric, models in metrics.items():
            scores = results["scores"][task]
            groups = list(next(iter(models.values())))
            tasks.append(
                {
                    "name": f"{TASKS[task]}: {METRICS[metric][0]}",
                    "meaning": METRICS[metric][1],
                    "groups": groups,
                    "languages": len(scores[next(iter(models))]),
                    "rows": {
                        model: [
                            cells[group][kind] for group in groups for kind in ("in_language", "zero_shot")
                        ]
                        for model, cells in models.items()
                    },
                    "figures": {
                        model: Markup(_transfer_figure(cells, metric)) for model, cells in scores.items()
                    },
                }
            )
    return {"tasks": tasks}


def _transfer_figure(scores: dict[str, dict[str, dict[str, list[float]]]], metric: str) -> str:
    languages = list(scores)
    means = [
        [sum(scores[source][target][metric]) / len(scores[source][target][metric]) for target in languages]
        for source in languages
    ]
    return heat_map(means, languages)
