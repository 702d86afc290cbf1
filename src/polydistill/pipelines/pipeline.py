"""Running a recipe of any kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from polydistill.config.balance import BalanceRecipe
from polydistill.config.extract import ExtractRecipe
from polydistill.config.finetune import FinetuneRecipe
from polydistill.config.grid import GridRecipe
from polydistill.config.load import AnyRecipe, load_recipe
from polydistill.config.merge import MergeRecipe
from polydistill.config.probe import ProbeRecipe
from polydistill.errors import RecipeError
from polydistill.limits import explain_limits
from polydistill.pipelines import pretrain
from polydistill.pipelines.balance import pipeline as balance
from polydistill.pipelines.extract import pipeline as extract
from polydistill.pipelines.finetune import pipeline as finetune
from polydistill.pipelines.grid import pipeline as grid
from polydistill.pipelines.merge import pipeline as merge
from polydistill.pipelines.probe import pipeline as probes
from polydistill.pipelines.run_folder import Run, open_run
from polydistill.pipelines.stages.engine import check_engine
from polydistill.processes import leave, num_processes


def run_recipe(
    recipe: str | Path | AnyRecipe,
    overrides: Sequence[str] = (),
    *,
    until: str = "report",
    update: bool = False,
    probe: Sequence[str] | None = None,
    show: Callable[[str], None] = print,
) -> Path:
    """Run a recipe up to a stage (`corpora`, `tokenizer`, `score`, `train`, `evaluate`, `report`).

    recipe     a YAML file, a preset's name, or a recipe that is loaded already
    overrides  `a.b=c` strings
    update     let the recipe of an existing folder change; what depends on the change is done again
    probe      tasks of a balance recipe's probes to run; by default all
    show       where lines for people go
    Returns the run's folder; what is done there already is not done again.
    """
    loaded = load_recipe(recipe, overrides) if isinstance(recipe, str | Path) else recipe
    known = {
        "merge": merge.STAGES, "extract": extract.STAGES, "balance": balance.STAGES,
        "pretrain": pretrain.STAGES, "probe": probes.STAGES, "finetune": finetune.STAGES, "grid": grid.STAGES,
    }  # fmt: skip
    stages = known[loaded.recipe]
    if until not in stages:
        if until != "report":
            raise RecipeError(
                "recipe", loaded.recipe, f"this kind has no stage {until!r}", f"it has {', '.join(stages)}"
            )
        until = stages[-1]
    if probe is not None and not isinstance(loaded, BalanceRecipe):
        raise RecipeError(
            "--probe", ", ".join(probe), f"a {loaded.recipe} has no probes of its own",
            "write a recipe of kind probe, with the models' folders and the tasks",
        )  # fmt: skip
    if num_processes() > 1 and loaded.recipe in ("finetune", "grid", "probe"):
        raise RecipeError(
            "recipe", loaded.recipe, f"this kind runs in one process, and {num_processes()} were started",
            "start it without torchrun or accelerate launch",
        )  # fmt: skip
    if until not in ("corpora", "tokenizer"):
        check_engine(loaded)
    run = open_run(loaded, show=show, update=update)
    try:
        with explain_limits():
            return _run_kind(loaded, run, until=until, update=update, probe=probe)
    finally:
        leave()


def _run_kind(loaded: AnyRecipe, run: Run, *, until: str, update: bool, probe: Sequence[str] | None) -> Path:
    if isinstance(loaded, MergeRecipe):
        return merge.run_merge(loaded, run, until=until)
    if isinstance(loaded, ExtractRecipe):
        return extract.run_extract(loaded, run, until=until)
    if isinstance(loaded, GridRecipe):

        def run_one(child: AnyRecipe, say: Callable[[str], None]) -> Path:
            return run_recipe(child, update=update, show=say)

        return grid.run_grid(loaded, run, run_one, until=until)
    if isinstance(loaded, BalanceRecipe):
        return balance.run_balance(loaded, run, until=until, probe=probe)
    if isinstance(loaded, ProbeRecipe):
        return probes.run_probe(loaded, run, until=until)
    if isinstance(loaded, FinetuneRecipe):
        return finetune.run_finetune(loaded, run, until=until)
    return pretrain.run_pretrain(loaded, run, until=until)
