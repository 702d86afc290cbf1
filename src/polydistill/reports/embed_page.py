"""The page of a distilled sentence encoder: its measures beside the teacher's, retrieval by language."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from polydistill.artefacts import artefact_places
from polydistill.config.yaml_text import read_resolved
from polydistill.disk import Json, read_json
from polydistill.reports.card_embed import embed_rows
from polydistill.reports.figures import curves, heat_map, logged


def gather_embed(run: Path) -> Json:
    """The page's own values, read from the run's JSON files."""
    recipe = read_resolved(run / "recipe.yaml")
    results = read_json(run / "evaluation" / "embed.json", dict)
    log = read_json(run / "student" / "log.json")
    places = artefact_places(run)
    return {
        "models": results["models"],
        "rows": embed_rows(results),
        "retrieval": [
            {"name": name, "languages": len(maps[results["models"][0]]), "figures": _figures(maps)}
            for name, row in results["retrieval"].items()
            for maps in [row["pairs"]]
        ],
        "loss_figure": Markup(_loss_figure(log["log"], list(recipe["languages"]), recipe["loss"])),
        "languages": [
            {
                "name": language,
                "share": log["probabilities"][language],
                "statistics": read_json(places[f"sentences/{language}"] / "statistics.json"),
            }
            for language in recipe["languages"]
        ],
    }


def _figures(maps: dict[str, dict[str, dict[str, float]]]) -> dict[str, Markup]:
    """Model → a map of accuracies, 1 from each language to itself."""
    return {
        model: Markup(
            heat_map([[row.get(target, 1.0) for target in pairs] for row in pairs.values()], list(pairs))
        )
        for model, pairs in maps.items()
    }


def _loss_figure(log: list[dict[str, float]], languages: list[str], loss: str) -> str:
    series = {name: points for name in languages if (points := logged(log, f"loss_{name}"))}
    return curves(series, xlabel="step", ylabel="1 - cosine" if loss == "cosine" else "squared difference")
