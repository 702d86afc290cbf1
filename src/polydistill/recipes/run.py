"""Running a recipe of any kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from polydistill.config import AnyRecipe, ExtractRecipe, MergeRecipe, ProbeRecipe, load_recipe
from polydistill.errors import RecipeError
from polydistill.recipes import extract, merge, pretrain, probe
from polydistill.recipes.run_folder import open_run


def run_recipe(
    recipe: str | Path | AnyRecipe,
    overrides: Sequence[str] = (),
    *,
    until: str = "report",
    update: bool = False,
    show: Callable[[str], None] = print,
) -> Path:
    """Run a recipe up to a stage (`corpora`, `tokenizer`, `score`, `train`, `evaluate`, `report`).

    recipe     a YAML file, a preset's name, or a recipe that is loaded already
    overrides  `a.b=c` strings
    update     let the recipe of an existing folder change; what depends on the change is done again
    show       where lines for people go
    Returns the run's folder; what is done there already is not done again.
    """
    loaded = load_recipe(recipe, overrides) if isinstance(recipe, str | Path) else recipe
    known = {
        "merge": merge.STAGES, "extract": extract.STAGES, "pretrain": pretrain.STAGES, "probe": probe.STAGES,
    }  # fmt: skip
    stages = known[loaded.recipe]
    if until not in stages:
        if until != "report":
            raise RecipeError(
                "recipe", loaded.recipe, f"this kind has no stage {until!r}", f"it has {', '.join(stages)}"
            )
        until = stages[-1]
    run = open_run(loaded, show=show, update=update)
    if isinstance(loaded, MergeRecipe):
        return merge.run_merge(loaded, run, until=until)
    if isinstance(loaded, ExtractRecipe):
        return extract.run_extract(loaded, run, until=until)
    if isinstance(loaded, ProbeRecipe):
        return probe.run_probe(loaded, run, until=until)
    return pretrain.run_pretrain(loaded, run, until=until)
