"""Where teachers score: whether what a recipe asks for is there, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from polydistill.config.balance import BalanceRecipe
from polydistill.config.extract import ExtractRecipe
from polydistill.config.grid import GridRecipe
from polydistill.config.load import AnyRecipe
from polydistill.config.merge import MergeRecipe
from polydistill.config.scoring import Scoring
from polydistill.errors import RecipeError, UserError
from polydistill.pipelines.grid.children import children_of
from polydistill.pipelines.stages.conflicts import Conflict, refusal
from polydistill.scoring.ray_session import address_of, check_address, require_ray
from polydistill.scoring.storage import ShardStorage


def scoring_of(recipe: AnyRecipe) -> Scoring | None:
    """How a recipe scores; None if it stores no predictions."""
    if isinstance(recipe, MergeRecipe):
        return recipe.scoring
    if isinstance(recipe, ExtractRecipe):
        return recipe.scoring if recipe.losses.predictions == "stored" else None
    if isinstance(recipe, BalanceRecipe):
        stored = any(
            student.labels != "gold" and student.predictions == "stored"
            for student in recipe.students.values()
        )
        return recipe.scoring if stored else None
    return None


def check_engine(recipe: AnyRecipe) -> None:
    """Raise UserError if Ray is asked for and not installed, or its address or storage is of no use."""
    if isinstance(recipe, GridRecipe):
        for child in children_of(recipe).values():
            check_engine(child)
    scoring = scoring_of(recipe)
    if scoring is not None and scoring.engine == "ray":
        for check in _checks(scoring):
            check()


def plan_engine(recipe: AnyRecipe, console: Console) -> list[Conflict]:
    """Print where a recipe's teachers score; returns its conflicts."""
    scoring = scoring_of(recipe)
    if scoring is None:
        return []
    if scoring.engine == "local":
        console.print("scoring: in this process", markup=False)
        return []
    where = scoring.ray.address or "started on this machine, or joined where RAY_ADDRESS says"
    console.print(
        f"scoring: workers on Ray ({where}); times below are those of one process here", markup=False
    )
    found = []
    for check in _checks(scoring):
        try:
            check()
        except UserError as error:
            found.append(refusal(error))
    return found


def _checks(scoring: Scoring) -> list[Callable[[], None]]:
    """What can be known without starting anything; each raises UserError."""
    settings = scoring.ray
    return [
        require_ray,
        lambda: check_address(settings),
        lambda: None if settings.storage is None else _check_storage(settings.storage),
        lambda: _check_precision(scoring),
    ]


def _check_storage(url: str) -> None:
    ShardStorage(url, {})


def _check_precision(scoring: Scoring) -> None:
    """The driver would choose by its own processor what other machines compute in."""
    if address_of(scoring.ray) not in (None, "local") and scoring.precision == "auto":
        raise RecipeError(
            "scoring.precision", "auto", "is what this machine computes in, and a cluster's workers may be others",
            "set scoring.precision: bfloat16 (GPUs, recent processors) or float32",
        )  # fmt: skip
