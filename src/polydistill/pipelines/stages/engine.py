"""Where teachers score: check that the engine a recipe asks for is available, before any work."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from polydistill.config.scoring import Ray, Scoring
from polydistill.config.shared import Corpora, RunRecipe, TextRecipe
from polydistill.errors import RecipeError, UserError
from polydistill.pipelines.stages.conflicts import Conflict, refusal
from polydistill.ray_session import address_of, check_address, require_ray
from polydistill.scoring.storage import ShardStorage


def check_engine(recipe: RunRecipe, *, scores: bool = True) -> None:
    """Raise UserError if a recipe needs Ray and Ray is missing, or its address or storage is unusable.

    scores  whether the run comes to its scoring
    """
    if isinstance(recipe, TextRecipe):
        check_corpora_engine(recipe.corpora)
    scoring = recipe.stored_scoring
    if scores and scoring is not None and scoring.engine == "ray":
        for check in _checks(scoring):
            check()


def check_corpora_engine(corpora: Corpora) -> None:
    """Raise UserError if corpora need Ray and it is missing, or nothing answers at its address."""
    if corpora.engine == "ray":
        require_ray("corpora.engine")
        check_address(Ray(address=corpora.address), field="corpora.address")


def plan_engine(recipe: RunRecipe, console: Console) -> list[Conflict]:
    """Print where a recipe's teachers score; returns its conflicts."""
    conflicts = []
    if isinstance(recipe, TextRecipe):
        try:
            check_corpora_engine(recipe.corpora)
        except UserError as error:
            conflicts.append(refusal(error))
    scoring = recipe.stored_scoring
    if scoring is None:
        return conflicts
    if scoring.engine == "local":
        console.print("scoring: in this process", markup=False)
        return conflicts
    where = scoring.ray.address or "started on this machine, or joined at RAY_ADDRESS"
    console.print(
        f"scoring: workers on Ray ({where}); times below are those of one process here", markup=False
    )
    for check in _checks(scoring):
        try:
            check()
        except UserError as error:
            conflicts.append(refusal(error))
    return conflicts


def _checks(scoring: Scoring) -> list[Callable[[], None]]:
    """The checks that start nothing; each raises UserError."""
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
    """`auto` would let the driver's processor decide the precision of other machines."""
    if address_of(scoring.ray) not in (None, "local") and scoring.precision == "auto":
        raise RecipeError(
            "scoring.precision",
            "auto",
            "depends on this machine's processor, and the cluster's workers may have others",
            "set scoring.precision: bfloat16 (GPUs, recent processors) or float32",
        )
