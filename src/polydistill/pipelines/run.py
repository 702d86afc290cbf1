"""Run a recipe of any kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from polydistill.config.load import load_recipe
from polydistill.config.shared import RunRecipe
from polydistill.pipelines.kinds import PIPELINES
from polydistill.pipelines.pipeline import run_pipeline
from polydistill.reports.progress import Watch


def run_recipe(
    recipe: str | Path | RunRecipe,
    overrides: Sequence[str] = (),
    *,
    until: str = "report",
    update: bool = False,
    probe: Sequence[str] | None = None,
    show: Callable[[str], None] = print,
    watch: Watch | None = None,
) -> Path:
    """Run a recipe up to a stage (`corpora`, `tokenizer`, `score`, `train`, `evaluate`, `report`).

    recipe     a YAML file, a preset's name, or a loaded recipe
    overrides  `a.b=c` strings
    update     let the recipe of an existing folder change; what depends on the change is redone
    probe      tasks of a balance recipe's probes to run; by default all
    show       takes each line of progress
    watch      takes the run's position whenever it changes
    Returns the run's folder. Finished work in it is reused.
    """
    loaded = load_recipe(recipe, overrides) if isinstance(recipe, str | Path) else recipe
    return run_pipeline(loaded, PIPELINES, until=until, update=update, probe=probe, show=show, watch=watch)
