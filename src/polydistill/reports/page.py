"""The report's page: one HTML file that opens without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from polydistill.artefacts import ARTEFACTS, STAMP, artefact_places, artefacts_in, check_artefact
from polydistill.config.yaml_text import read_resolved
from polydistill.disk import Json, read_json, read_record, refuse_links, write_text
from polydistill.errors import RunFolderError
from polydistill.reports.balance_page import gather_balance
from polydistill.reports.embed_page import gather_embed
from polydistill.reports.extract_page import gather_extract
from polydistill.reports.finetune_page import gather_finetune
from polydistill.reports.grid_page import gather_grid
from polydistill.reports.merge_page import gather_merge
from polydistill.reports.pretrain_page import gather_pretrain
from polydistill.reports.probe_page import gather_probes
from polydistill.reports.records import LOG, check_recipe, check_records
from polydistill.version import __version__


class Page(NamedTuple):
    """The page of a kind of recipe.

    gather     reads the page's own values from a run's folder
    evaluated  the evaluation's file that the page is made from
    places     a run's recipe → the artefacts whose place the run must record
    """

    template: str
    gather: Callable[[Path], Json]
    evaluated: str = "mlm.json"
    places: Callable[[Json], list[str]] = lambda recipe: []


def _corpora(recipe: Json) -> list[str]:
    return [f"corpora/{language}" for language in recipe["languages"]]


def _corpora_and_stores(recipe: Json) -> list[str]:
    stores = [
        f"store/{language}/{teacher}"
        for language, settings in recipe["languages"].items()
        for teacher in settings["teachers"]
    ]
    return _corpora(recipe) + stores


def _sentences_and_vectors(recipe: Json) -> list[str]:
    return [f"{kind}/{name}" for name in recipe["languages"] for kind in ("sentences", "vectors")]


PAGES = {
    "merge": Page("merge.html.jinja", gather_merge, places=_corpora_and_stores),
    "extract": Page(
        "extract.html.jinja", gather_extract, places=lambda recipe: [f"corpora/{recipe['language']}"]
    ),
    "pretrain": Page("pretrain.html.jinja", gather_pretrain, places=_corpora),
    "balance": Page("balance.html.jinja", gather_balance),
    "probe": Page("probe.html.jinja", gather_probes, "probes.json"),
    "finetune": Page("finetune.html.jinja", gather_finetune, "finetune.json"),
    "embed": Page("embed.html.jinja", gather_embed, "embed.json", _sentences_and_vectors),
    "grid": Page("grid.html.jinja", gather_grid, "grid.json"),
}


def report_run(run: Path) -> Path:
    """Write a run's `report/index.html`; return its path.

    Raises RunFolderError if a record is damaged, the folder holds links, or the run is not evaluated.
    """
    if not (run / "recipe.yaml").is_file():
        raise _not_evaluated(run, "mlm.json")
    refuse_links(run)
    check_records(run)
    recipe = check_recipe(run)
    page = PAGES.get(recipe["recipe"])
    if page is None:
        raise RunFolderError(
            "folder",
            str(run),
            f"is a run of recipe {recipe['recipe']}, which has no report",
            "see evaluation/mlm.json",
        )
    _check_places(run, page.places(recipe))
    if not (run / "evaluation" / page.evaluated).is_file():
        raise _not_evaluated(run, page.evaluated)
    for folder in artefacts_in(run):
        # Stores and corpora are large, and pages show only their counts.
        if folder.relative_to(run).parts[0] not in ("store", "corpora", "vectors"):
            check_artefact(folder)
    return _write(run, page.template, page.gather(run))


def _not_evaluated(run: Path, name: str) -> RunFolderError:
    return RunFolderError(
        "folder", str(run), f"holds no evaluation/{name}", "run `polydistill evaluate` first"
    )


def _check_places(run: Path, needed: list[str]) -> None:
    """Raise RunFolderError if a run has lost the place of a corpus or store that its page shows."""
    places = artefact_places(run) if needed else {}
    for name in needed:
        if name not in places or not (places[name] / STAMP).is_file():
            raise RunFolderError(
                str(run / ARTEFACTS),
                None,
                f"does not say where {name} is, or it is gone",
                "rerun the command: what is gone is made again",
            )


def environment() -> Environment:
    """Where the pages' templates are, and their filters."""
    made = Environment(
        loader=PackageLoader("polydistill", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    made.filters["duration"] = duration
    return made


def _write(run: Path, template: str, values: Json) -> Path:
    path = run / "report" / "index.html"
    write_text(path, environment().get_template(template).render(**_common(run), **values))
    return path


def _common(run: Path) -> Json:
    """The values that every page shows."""
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
        "use": _use(run, recipe),
        "arguments": read_record(run / "student" / LOG).get("arguments", {}),
    }


def _use(run: Path, recipe: Json) -> Json | None:
    """What the page's code needs to load the student; None for a run without one.

    folder     of the student, from where the run was started, as Python writes it
    text       with a mask, of the first shown sentence, as Python writes it
    languages  that have a tokenizer of their own in it
    """
    final = run / "student" / "final"
    tokenizer = read_record(final / "tokenizer_config.json")
    if not tokenizer:
        return None
    mask = tokenizer.get("mask_token", "[MASK]")
    mask = mask.get("content", "[MASK]") if isinstance(mask, dict) else mask
    samples = [
        entry for shown in read_record(run / "evaluation" / "samples.json").values() for entry in shown
    ]
    sample = samples[0] if samples else {"before": "", "after": ""}
    output = recipe.get("output") or f"runs/{recipe['name']}"
    return {
        "folder": repr(f"{output}/student/final"),
        # Between its neighbours: the pipeline's answer has another form for several masks.
        "text": repr(f"{sample['before'].split(mask)[-1]} {mask} {sample['after'].split(mask)[0]}".strip()),
        "languages": sorted(path.parent.name for path in final.glob("tokenizer/*/tokenizer.json")),
    }


def duration(seconds: float) -> str:
    """A time in readable units."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return (
        f"{whole // 3600} h {whole // 60 % 60} min" if whole >= 3600 else f"{whole // 60} min {whole % 60} s"
    )
