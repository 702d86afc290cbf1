"""Pipelines, and the runner that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from rich.console import Console

from polydistill.config.shared import RunRecipe
from polydistill.errors import RecipeError
from polydistill.limits import explain_limits
from polydistill.pipelines.run_folder import Run, open_run
from polydistill.pipelines.stages.conflicts import Conflict
from polydistill.pipelines.stages.engine import check_engine
from polydistill.pipelines.stages.training import Training
from polydistill.processes import leader_first, leads, leave, num_processes
from polydistill.reports.progress import Watch

# A run that ends with one of these stages scores nothing, so its scoring engine is not checked.
BEFORE_SCORING = ("corpora", "tokenizer")

Recipe = TypeVar("Recipe", bound=RunRecipe)
State = TypeVar("State")
# Kind of recipe → its pipeline.
Pipelines = Mapping[str, "Pipeline[Any, Any]"]


class Command(NamedTuple):
    """What a command asks for in addition to the recipe.

    pipelines  the table of kinds, for a grid, which runs recipes of other kinds
    until      the last stage of the run
    probe      tasks of a recipe's probes to run; None: all
    """

    pipelines: Pipelines
    until: str = "report"
    probe: Sequence[str] | None = None


class Stage(NamedTuple, Generic[State]):
    """A step of a pipeline, after which the command line can stop.

    work       takes the pipeline's state; skips finished work
    processes  which of several processes run it: the first and then the others, which reuse its artefacts;
               all together; or the first alone
    """

    name: str
    work: Callable[[State], None]
    processes: Literal["leader_first", "all", "leader"] = "leader"


class Pipeline(NamedTuple, Generic[Recipe, State]):
    """A kind of recipe, and how to run it.

    recipe       the class of its settings
    check        raises UserError for what can be checked without models, before anything is written
    prepare      makes the state that the stages share; raises UserError for what needs models to check
    stages       in order
    plan         prints sizes and times of a recipe; returns its conflicts
    training     makes the inputs of its one training from the state; None for kinds that train no model or
                 several
    distributed  whether several processes can run it together
    probes       whether `--probe` chooses among its tasks
    """

    recipe: type[Recipe]
    check: Callable[[Recipe, Command], None]
    prepare: Callable[[Recipe, Run, Command], State]
    stages: tuple[Stage[State], ...]
    plan: Callable[[Recipe, Console, Pipelines], list[Conflict]]
    training: Callable[[State], Training] | None = None
    distributed: bool = True
    probes: bool = False

    @property
    def stage_names(self) -> list[str]:
        """The names of its stages, in order."""
        return list(dict.fromkeys(stage.name for stage in self.stages))


def run_pipeline(
    recipe: RunRecipe,
    pipelines: Pipelines,
    *,
    until: str = "report",
    update: bool = False,
    probe: Sequence[str] | None = None,
    show: Callable[[str], None] = print,
    watch: Watch | None = None,
) -> Path:
    """Run a loaded recipe up to a stage; returns the run's folder. See `run_recipe`.

    pipelines  kind of recipe → its pipeline
    """
    pipeline = pipelines[recipe.recipe]
    command = Command(pipelines, _last_stage(pipeline.stage_names, until, recipe.recipe), probe)
    if probe is not None and not pipeline.probes:
        raise RecipeError(
            "--probe",
            ", ".join(probe),
            f"a {recipe.recipe} has no probes of its own",
            "write a recipe of kind probe, with the models' folders and the tasks",
        )
    if num_processes() > 1 and not pipeline.distributed:
        raise RecipeError(
            "recipe",
            recipe.recipe,
            f"this kind runs in one process, and {num_processes()} were started",
            "start it without torchrun or accelerate launch",
        )
    check_engine(recipe, scores=until not in BEFORE_SCORING)
    pipeline.check(recipe, command)
    run = open_run(recipe, show=show, update=update, watch=watch)
    try:
        with explain_limits(), run.claim():
            state = prepared(pipeline, recipe, run, command)
            with run.underway(pipeline.stage_names):
                run_stages(pipeline, state, until=command.until, enter=run.enter)
    finally:
        leave()
    return run.path


def prepared(pipeline: Pipeline[Recipe, State], recipe: Recipe, run: Run, command: Command) -> State:
    """Prepare a claimed run, then record its recipe, which has passed all checks; returns the state."""
    state = pipeline.prepare(recipe, run, command)
    run.record_recipe()
    return state


def run_stages(
    pipeline: Pipeline[Recipe, State],
    state: State,
    *,
    until: str | None = None,
    before: str | None = None,
    enter: Callable[[str], None] = lambda stage: None,
) -> None:
    """Run the stages up to and including `until`, or those ahead of `before`, each in its processes.

    enter  takes each stage's name before it begins
    """
    names = pipeline.stage_names
    end = names.index(before) if before is not None else names.index(until or names[-1]) + 1
    chosen = (stage for stage in pipeline.stages if names.index(stage.name) < end)
    for processes, stages in groupby(chosen, key=lambda stage: stage.processes):
        if processes == "leader" and not leads():
            continue
        with leader_first() if processes == "leader_first" else nullcontext():
            for stage in stages:
                enter(stage.name)
                stage.work(state)


def _last_stage(names: Sequence[str], until: str, kind: str) -> str:
    """The stage that a run ends with; RecipeError for one that the kind lacks."""
    if until in names:
        return until
    if until != "report":
        raise RecipeError("recipe", kind, f"this kind has no stage {until!r}", f"it has {', '.join(names)}")
    return names[-1]
