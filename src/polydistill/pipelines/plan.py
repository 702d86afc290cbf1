"""Preflight: what a recipe would do and cost, and its conflicts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from polydistill.config.load import load_recipe
from polydistill.config.shared import RunRecipe
from polydistill.pipelines.kinds import PIPELINES
from polydistill.pipelines.stages.conflicts import Conflict
from polydistill.pipelines.stages.planning import FULL


def plan_recipe(
    recipe: str | RunRecipe, overrides: Sequence[str], console: Console, *, full: bool = False
) -> list[Conflict]:
    """Print sizes, times and conflicts of a recipe; returns the conflicts.

    full  print every resolved setting first
    """
    loaded = load_recipe(recipe, overrides) if isinstance(recipe, str) else recipe
    token = FULL.set(full)
    try:
        return PIPELINES[loaded.recipe].plan(loaded, console, PIPELINES)
    finally:
        FULL.reset(token)
