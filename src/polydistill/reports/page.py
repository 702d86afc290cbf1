"""The report's page: one HTML file that opens without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from polydistill import __version__
from polydistill.artefacts import (
    ARTEFACTS,
    STAMP,
    artefact_places,
    artefacts_in,
    check_artefact,
)
from polydistill.config.yaml_text import read_resolved
from polydistill.disk import read_json, read_record, refuse_links, write_text
from polydistill.errors import RunFolderError
from polydistill.reports.balance_page import gather_balance
from polydistill.reports.extract_page import gather_extract
from polydistill.reports.figures import curves, grouped_bars
from polydistill.reports.finetune_page import gather_finetune
from polydistill.reports.grid_page import gather_grid
from polydistill.reports.pretrain_page import gather_pretrain
from polydistill.reports.probe_page import gather_probes
from polydistill.reports.records import check_recipe, check_records


def build_report(run: Path) -> Path:
    """Write `report/index.html` of the folder of a run of any recipe; return its path.

    Raises RunFolderError if the run has not been evaluated.
    """
    kind = _common(run)["recipe"]["recipe"] if (run / "recipe.yaml").is_file() else "none"
    evaluated = {"probe": "probes.json", "finetune": "finetune.json", "grid": "grid.json"}.get(
        kind, "mlm.json"
    )
    if not (run / "evaluation" / evaluated).is_file():
        raise RunFolderError(
            "folder", str(run), f"holds no evaluation/{evaluated}", "run `polydistill evaluate` first"
        )
    for folder in artefacts_in(run):
        # Stores and corpora are large, and pages show only what was counted in them.
        if folder.relative_to(run).parts[0] not in ("store", "corpora"):
            check_artefact(folder)
    if kind == "merge":
        return _write(run, "page.html.jinja", gather(run))
    if kind == "extract":
        return _write(run, "extract.html.jinja", gather_extract(run))
    if kind == "pretrain":
        return _write(run, "pretrain.html.jinja", gather_pretrain(run))
    if kind == "probe":
        return _write(run, "probe.html.jinja", gather_probes(run))
    if kind == "balance":
        return _write(run, "balance.html.jinja", gather_balance(run))
    if kind == "grid":
        return _write(run, "grid.html.jinja", gather_grid(run))
    if kind == "finetune":
        values = read_json(run / "evaluation" / evaluated)
        if "summary" not in values:
            raise RunFolderError(
                "folder",
                str(run),
                f"has done {values['done']} of {values['jobs']} jobs",
                "run the recipe to its end",
            )
        return _write(run, "finetune.html.jinja", gather_finetune(run))
    raise RunFolderError(
        "folder", str(run), f"is a run of recipe {kind}, which has no report", "see evaluation/mlm.json"
    )


def _write(run: Path, template: str, values: dict[str, Any]) -> Path:
    environment = Environment(
        loader=PackageLoader("polydistill", "reports"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["duration"] = duration
    path = run / "report" / "index.html"
    write_text(path, environment.get_template(template).render(**_common(run), **values))
    return path


def _common(run: Path) -> dict[str, Any]:
    """What every page shows of its run."""
    path = run / "recipe.yaml"
    try:
        recipe_text = path.read_text("utf-8")
        recipe = read_resolved(path)
    except (yaml.YAMLError, ValueError) as error:
        raise RunFolderError(
            str(path), None, "is damaged: it is no longer YAML", "run the recipe again with --update"
        ) from error
    return {
        "name": recipe["name"],
        "version": __version__,
        "recipe": recipe,
        "recipe_text": recipe_text,
        "timing": read_record(run / "timing.json"),
        "environment": read_json(run / "environment.json"),
    }


def gather(run: Path) -> dict[str, Any]:
    """Everything that the page shows, read from the run's JSON files."""
    recipe = _common(run)["recipe"]
    evaluation = read_json(run / "evaluation" / "mlm.json")
    log = read_json(run / "student" / "log.json")
    vocabulary = read_json(run / "tokenizer" / "vocabulary.json")
    initialisation = read_json(run / "student" / "final" / "initialisation.json")
    return {
        "headline": _headline(evaluation),
        "languages": _languages(run, recipe, log),
        "vocabulary": vocabulary,
        "segmentation": vocabulary["segmentation"],
        "mrr_figure": Markup(_mrr_figure(evaluation)),
        "loss_figure": Markup(_loss_figure(log["log"], ("kd_loss", "mlm_loss"))),
        "language_figure": Markup(
            _loss_figure(log["log"], tuple(f"loss_{name}" for name in recipe["languages"]))
        ),
        "results": evaluation["languages"],
        "D": evaluation["summary"].get("D"),
        "samples": read_json(run / "evaluation" / "samples.json"),
        "initialisation": initialisation,
        "stores": _stores(run, recipe),
    }


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return (
        f"{whole // 3600} h {whole // 60 % 60} min" if whole >= 3600 else f"{whole // 60} min {whole % 60} s"
    )


def _headline(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """For each language: the student beside its best teacher and the baseline, on the teacher's own tokenizer."""
    found = []
    for language, rows in evaluation["languages"].items():
        own = [row for row in rows if row["text"] == "held_out" and row["tokenizer"] == "own"]
        teachers = [row for row in own if row["model"] != "student"]
        best = max(teachers, key=lambda row: row["mrr"])
        student = next(row for row in own if row["model"] == "student" and row["teacher"] == best["teacher"])
        found.append(
            {
                "language": language,
                "teacher": best["model"],
                "teacher_mrr": best["mrr"],
                "student_mrr": student["mrr"],
                "unigram_mrr": student["unigram_mrr"],
            }
        )
    return found


def _languages(run: Path, recipe: dict[str, Any], log: dict[str, Any]) -> list[dict[str, Any]]:
    places = artefact_places(run)
    found = []
    for language, settings in recipe["languages"].items():
        path = places[f"corpora/{language}"] / "statistics.json"
        found.append(
            {
                "name": language,
                "teachers": settings["teachers"],
                "use": settings["use"],
                "share": log["probabilities"][language],
                "statistics": read_json(path),
            }
        )
    return found


def _stores(run: Path, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    places = artefact_places(run)
    found = []
    for language, settings in recipe["languages"].items():
        for teacher in settings["teachers"]:
            manifest = read_json(places[f"store/{language}/{teacher}"] / "manifest.json")
            shards = manifest["shards"]
            total = {key: sum(s[key] for s in shards) for key in ("bytes", "examples", "masked", "tokens")}
            width = 2 if manifest["identity"]["vocabulary_size"] <= 1 << 16 else 4
            found.append(
                {"language": language, "teacher": teacher, "identity": manifest["identity"]}
                | total
                | {"bytes_a_position": (total["bytes"] - width * total["tokens"]) / max(1, total["masked"])}
            )
    return found


def _mrr_figure(evaluation: dict[str, Any]) -> str:
    languages = list(evaluation["languages"])
    series: dict[str, list[float | None]] = {}
    for place, rows in enumerate(evaluation["languages"].values()):
        for row in rows:
            if row["text"] != "held_out":
                continue
            if row["model"] != "student":
                names = [("teacher", row["mrr"]), ("unigram", row["unigram_mrr"])]
            else:
                names = [(f"student, {row['tokenizer']} tokenizer", row["mrr"])]
            for name, value in names:
                values = series.setdefault(name, [None] * len(languages))
                # With several teachers, the best one's row stands.
                values[place] = value if values[place] is None else max(value, values[place] or 0.0)
    order = ["unigram", "teacher", *sorted(name for name in series if name.startswith("student"))]
    return grouped_bars(languages, {name: series[name] for name in order if name in series}, ylabel="MRR")


def _loss_figure(log: list[dict[str, float]], names: tuple[str, ...]) -> str:
    series = {}
    for name in names:
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        if points:
            label = {"kd_loss": "KD", "mlm_loss": "MLM"}.get(name, name.removeprefix("loss_"))
            series[label] = ([x for x, _ in points], [y for _, y in points])
    return curves(series, xlabel="step", ylabel="nats a masked token")


def report_run(run: Path) -> Path:
    """Write the report of a run whose records are whole; return its path.

    Raises RunFolderError if a record is not, if the folder has links in it, or if the run has not been evaluated.
    """
    if (run / "recipe.yaml").is_file():
        refuse_links(run)
        check_records(run)
        _check_places(run)
    return build_report(run)


def _check_places(run: Path) -> None:
    """Raise RunFolderError if a run does not know where a corpus or store is that its page tells of."""
    recipe = check_recipe(run)
    needed = [f"corpora/{recipe['language']}"] if recipe["recipe"] == "extract" else []
    if recipe["recipe"] in ("merge", "pretrain"):
        needed = [f"corpora/{language}" for language in recipe["languages"]]
    if recipe["recipe"] == "merge":
        needed += [
            f"store/{name}/{one}"
            for name, language in recipe["languages"].items()
            for one in language["teachers"]
        ]
    places = artefact_places(run) if needed else {}
    for name in needed:
        if name not in places or not (places[name] / STAMP).is_file():
            raise RunFolderError(
                str(run / ARTEFACTS), None, f"does not say where {name} is, or it is gone",
                "run the same command again: what is gone is made anew",
            )  # fmt: skip
