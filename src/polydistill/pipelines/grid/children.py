"""The runs of a grid: their recipes, what they read of each other, and what is checked before the first of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydistill.config.balance import BalanceRecipe
from polydistill.config.extract import ExtractRecipe
from polydistill.config.finetune import FinetuneRecipe
from polydistill.config.grid import GridRecipe
from polydistill.config.load import AnyRecipe, grid_values, parse_recipe
from polydistill.config.merge import MergeRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.corpora.sources import list_files
from polydistill.errors import RecipeError, UserError
from polydistill.pipelines.finetune.jobs import task_arguments
from polydistill.tasks.splits import read_tasks
from polydistill.training.arguments import check_arguments

# At the beginning of a path: the grid's own folder, wherever it is.
GRID = "$grid"


def children_of(recipe: GridRecipe) -> dict[str, AnyRecipe]:
    """Name → recipe of every run, in order; RecipeError names the run whose recipe cannot be used."""
    folder = Path(recipe.output or f"runs/{recipe.name}")
    changes = {
        name if variant is None else f"{name}-{variant}": (
            of_run,
            recipe.variants[variant] if variant else {},
        )
        for name, of_run in recipe.runs.items()
        for variant in (recipe.variants or [None])
    }
    whole = {name: grid_values(recipe.base, *of_run) for name, of_run in changes.items()} | recipe.after
    children: dict[str, AnyRecipe] = {}
    for name, raw in whole.items():
        values = _placed(raw, folder)
        place = f"{'after' if name in recipe.after else 'runs'}.{name}"
        earlier = [str(folder / other) for other in children]
        values = values | {
            "name": name, "output": str(folder / name), "reuse": [*earlier, *recipe.reuse, *values.get("reuse", [])],
        }  # fmt: skip
        try:
            child = parse_recipe(values, origin=place)
        except RecipeError as error:
            # Of the recipe's own file they say the file; here it is a place in the grid.
            raise RecipeError(place, error.value, f"{error.field}: {error.reason}", error.remedy) from error
        if isinstance(child, GridRecipe):
            raise RecipeError(f"{place}.recipe", "grid", "a grid holds no grid", "write its runs here")
        _check_models(place, child, recipe, folder, children)
        children[name] = child
    return children


def _placed(values: Any, folder: Path) -> Any:
    """Values in whose paths GRID is the grid's folder."""
    if isinstance(values, dict):
        return {key: _placed(value, folder) for key, value in values.items()}
    if isinstance(values, list):
        return [_placed(value, folder) for value in values]
    if isinstance(values, str) and (values == GRID or values.startswith(f"{GRID}/")):
        return str(folder) + values.removeprefix(GRID)
    return values


def _check_models(
    place: str, child: AnyRecipe, grid: GridRecipe, folder: Path, earlier: Mapping[str, AnyRecipe]
) -> None:
    """Raise RecipeError for a model within the grid's folder that is not there and that no earlier run makes, and for one
    of another folder that the grid had before.
    """
    made = [one for run in earlier.values() for one in made_by(run)]
    usual = Path("runs") / grid.name
    for model in models_of(child):
        if folder != usual and Path(model).is_relative_to(usual):
            within = Path(model).relative_to(usual)
            if folder / within in made:
                raise RecipeError(
                    place, model, f"is of a grid in {usual}, and this one's folder is {folder}", f"write {GRID}/{within.as_posix()}"
                )  # fmt: skip
        if Path(model).is_relative_to(folder) and not Path(model).exists() and Path(model) not in made:
            named = ", ".join(map(str, made)) or "none"
            raise RecipeError(
                place,
                model,
                "no run of this grid before it makes this folder",
                f"they make these models: {named}",
            )


def models_of(child: AnyRecipe) -> list[str]:
    """Names and folders of the models that a recipe reads."""
    settings = child.model_dump()
    named = [settings.get("teacher")]
    for key in ("models", "teachers", "languages"):
        for one in (settings.get(key) or {}).values():
            named += [one.get("model"), one.get("teacher")] if isinstance(one, dict) else []
    models = [one.get("model") if isinstance(one, dict) else one for one in named]
    return list(dict.fromkeys(model for model in models if isinstance(model, str)))


def made_by(child: AnyRecipe) -> list[Path]:
    """Folders of the models that a run makes."""
    folder = Path(child.output)
    if isinstance(child, BalanceRecipe):
        taught = [language for language, one in child.languages.items() if one.teacher is None]
        return [
            *(folder / "students" / name / "final" for name in child.students),
            *(folder / "teachers" / language / "final" for language in taught),
        ]
    return (
        [folder / "student" / "final"]
        if isinstance(child, MergeRecipe | ExtractRecipe | PretrainRecipe)
        else []
    )


def awaited(child: AnyRecipe, earlier: Mapping[str, AnyRecipe]) -> list[str]:
    """Folders of models that a run of a grid is to read, and that earlier runs of it have yet to make.

    earlier  the runs before it
    """
    made = {one for run in earlier.values() for one in made_by(run)}
    return [model for model in models_of(child) if Path(model) in made and not Path(model).exists()]


def check_children(children: Mapping[str, AnyRecipe]) -> None:
    """Raise what any run of a grid would be refused for, as far as it can be known before the first of them."""
    for name, child in children.items():
        try:
            check_child(child)
        except UserError as error:
            raise type(error)(f"{name}: {error.field}", error.value, error.reason, error.remedy) from error


def check_child(child: AnyRecipe) -> None:
    """Raise what a run would be refused for that does not hang on models: its arguments and its files."""
    if isinstance(child, FinetuneRecipe):
        for task in child.tasks:
            task_arguments(child, task)
        read_tasks(child)
    elif isinstance(child, MergeRecipe | ExtractRecipe | PretrainRecipe | BalanceRecipe):
        check_arguments(child.training)
        for field, sources in _texts(child):
            for index, source in enumerate(sources):
                if source.path is not None:
                    list_files(source, f"{field}[{index}]")


def _texts(child: MergeRecipe | ExtractRecipe | PretrainRecipe | BalanceRecipe) -> list[tuple[str, Any]]:
    if isinstance(child, ExtractRecipe):
        return [("text", child.text)]
    return [(f"languages.{language}.text", one.text) for language, one in child.languages.items()]
