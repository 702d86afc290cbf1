"""The runs of a grid: their recipes, what they read of each other, and the checks before the first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from polydistill.config.grid import GridRecipe
from polydistill.config.load import grid_values, parse_recipe
from polydistill.config.shared import RunRecipe
from polydistill.disk import Json
from polydistill.errors import RecipeError, within

# At the beginning of a path: the grid's own folder.
GRID = "$grid"


class Place(NamedTuple):
    """Where a run stands in a grid: its name without a seed, and its seed."""

    variant: str
    seed: int | None


def places_of(recipe: GridRecipe) -> dict[str, Place]:
    """Folder → place of every run, in order: all runs of a seed, then those of the next."""
    names = [*recipe.makes, *recipe.after]
    if not recipe.seeds:
        return {name: Place(name, None) for name in names}
    return {f"{name}-seed{seed}": Place(name, seed) for seed in recipe.seeds for name in names}


def children_of(recipe: GridRecipe) -> dict[str, RunRecipe]:
    """Name → recipe of every run, in order; RecipeError names the run whose recipe cannot be used."""
    folder = recipe.folder
    whole = {name: grid_values(recipe.base, *of_run) for name, of_run in recipe.makes.items()} | recipe.after
    children: dict[str, RunRecipe] = {}
    for name, (variant, seed) in places_of(recipe).items():
        seeded = {} if seed is None else {other: f"{other}-seed{seed}" for other in whole}
        raw = whole[variant]
        values: Json = {key: _placed(value, folder, seeded) for key, value in raw.items()}
        place = f"{'after' if variant in recipe.after else 'runs'}.{variant}"
        earlier = [str(folder / other) for other in children]
        # A root of the run's own comes first: `data: null` is none.
        data = values.get("data") or recipe.data
        values = values | {
            "name": name,
            "data": data,
            "output": str(folder / name),
            "reuse": [*earlier, *recipe.reuse, *values.get("reuse", [])],
        }
        with within(place):
            child = parse_recipe(values, origin="of this run")
        if seed is not None:
            child = child.model_copy(update={"seed": seed * child.seeds_each})
        if child.recipe == recipe.recipe:
            raise RecipeError(f"{place}.recipe", "grid", "a grid cannot hold a grid", "write its runs here")
        _check_models(place, child, recipe, folder, children)
        children[name] = child
    return children


def _placed(value: object, folder: Path, seeded: Mapping[str, str]) -> object:
    """Values with GRID replaced by the grid's folder in their paths.

    seeded  a run's name → its folder with the same seed
    """
    if isinstance(value, dict):
        return {key: _placed(inner, folder, seeded) for key, inner in value.items()}
    if isinstance(value, list):
        return [_placed(inner, folder, seeded) for inner in value]
    if isinstance(value, str) and (value == GRID or value.startswith(f"{GRID}/")):
        run, slash, rest = value.removeprefix(GRID).removeprefix("/").partition("/")
        return str(folder) + (f"/{seeded.get(run, run)}" if run else "") + slash + rest
    return value


def _check_models(
    place: str, child: RunRecipe, grid: GridRecipe, folder: Path, earlier: Mapping[str, RunRecipe]
) -> None:
    """Raise RecipeError for a model in the grid's folder that is missing and that no earlier run makes, and
    for one in the grid's usual folder if the grid has another.
    """
    made = [path for run in earlier.values() for path in run.models_made]
    usual = Path("runs") / grid.name
    for model in child.models_read:
        if folder != usual and Path(model).is_relative_to(usual):
            relative = Path(model).relative_to(usual)
            if folder / relative in made:
                raise RecipeError(
                    place,
                    model,
                    f"is in {usual}, and this grid's folder is {folder}",
                    f"write {GRID}/{relative.as_posix()}",
                )
        if Path(model).is_relative_to(folder) and not Path(model).exists() and Path(model) not in made:
            named = ", ".join(map(str, made)) or "none"
            raise RecipeError(
                place,
                model,
                "no earlier run of this grid makes this folder",
                f"earlier runs make these models: {named}",
            )


def awaited(child: RunRecipe, earlier: Mapping[str, RunRecipe]) -> list[str]:
    """Folders of models that a run of a grid reads and that its earlier runs have yet to make.

    earlier  the runs before it
    """
    made = {path for run in earlier.values() for path in run.models_made}
    return [model for model in child.models_read if Path(model) in made and not Path(model).exists()]
