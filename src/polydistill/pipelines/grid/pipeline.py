"""A grid: recipes that run one after the other, each in its own folder within the grid's, and one table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from polydistill.config.grid import GridRecipe
from polydistill.config.shared import RunRecipe
from polydistill.disk import Json, hash_file, write_json
from polydistill.errors import within
from polydistill.evaluation.convergence import Curve, compared, loss_curve
from polydistill.pipelines.grid.children import Place, awaited, children_of, places_of
from polydistill.pipelines.grid.rows import grid_rows
from polydistill.pipelines.grid.summary import summary
from polydistill.pipelines.grid.words import word_rows
from polydistill.pipelines.pipeline import Command, Pipeline, Pipelines, Stage, run_pipeline
from polydistill.pipelines.run_folder import Run
from polydistill.pipelines.stages.compute import over_seeds, run_compute
from polydistill.pipelines.stages.conflicts import Conflict, collect, counted, report_conflicts
from polydistill.pipelines.stages.engine import check_engine
from polydistill.pipelines.stages.evaluation import write_page
from polydistill.reports.progress import Position


class Grid(NamedTuple):
    """The state that the stages of a grid share.

    children  name → recipe of every run, in order
    """

    recipe: GridRecipe
    run: Run
    children: dict[str, RunRecipe]
    command: Command


def check(recipe: GridRecipe, command: Command) -> None:
    """Raise UserError for all that can be checked of every run before the first of them."""
    for name, child in children_of(recipe).items():
        with within(name):
            check_engine(child)
            command.pipelines[child.recipe].check(child, Command(command.pipelines))


def prepare(recipe: GridRecipe, run: Run, command: Command) -> Grid:
    """The grid's runs."""
    return Grid(recipe, run, children_of(recipe), command)


def evaluate(state: Grid) -> None:
    """Run every recipe in its own folder, or reuse its run; write the table to evaluation/grid.json."""
    run, children = state.run, state.children
    for number, (name, child) in enumerate(children.items(), 1):
        run.say(f"{name} ({number} of {len(children)}, {child.recipe})")
        run.count(name, number - 1, len(children), "runs")
        with run.stage(name):
            show = partial(_say, run, name)
            run_pipeline(
                child, state.command.pipelines, update=run.update, show=show, watch=partial(_watch, run, name)
            )
    places = places_of(state.recipe)
    rows = [row for name in children for row in grid_rows(children[name].folder, name)]
    rows = [{**row, **places[row["run"]]._asdict()} for row in [*word_rows(run, children), *rows]]
    curves = {name: curve for name, child in children.items() if (curve := loss_curve(child.folder))}
    table = {
        "rows": rows,
        "runs": list(children),
        "variants": list(dict.fromkeys(place.variant for place in places.values())),
        "seeds": state.recipe.seeds,
        "summary": summary(state.recipe, children, rows),
        "compute": compute_rows(state.run.path, children, places),
        "sooner": sooner(children, curves, places),
        "losses": {name: curve._asdict() for name, curve in curves.items()},
    }
    write_json(run.path / "evaluation" / "grid.json", table, sealed=True)


def compute_rows(
    grid: Path, children: Mapping[str, RunRecipe], places: Mapping[str, Place]
) -> dict[str, Json]:
    """Variant, or `variant: model` where a run trains several → what it cost, means over seeds."""
    each: dict[str, list[dict[str, Json]]] = {}
    for name, child in children.items():
        each.setdefault(places[name].variant, []).append(run_compute(child.folder, grid))
    means = {variant: over_seeds(rows) for variant, rows in each.items()}
    return {
        variant if model == "student" else f"{variant}: {model}": row
        for variant, rows in means.items()
        for model, row in rows.items()
    }


def _watch(run: Run, name: str, position: Position) -> None:
    """Show a run of the grid in place of the grid itself: its name leads."""
    if run.watch is not None:
        run.watch(replace(position, what=f"{name} {position.what}".rstrip()))


def _say(run: Run, name: str, line: str) -> None:
    run.say(f"{name}: {line}")


def write_report(state: Grid) -> None:
    """Write the report."""
    with state.run.stage("report"):
        write_page(state.run)


def sooner(
    children: Mapping[str, RunRecipe], curves: Mapping[str, Curve], places: Mapping[str, Place]
) -> list[Json]:
    """Where each run's student reaches the loss at which another's ends: see
    `evaluation.convergence.reached`.

    curves  of the runs that trained a student
    places  of the runs in the grid
    Compares only runs of one seed that guess the same pieces of the same text.
    """
    alike: dict[tuple[int | None, str], dict[str, Curve]] = {}
    for name, curve in curves.items():
        alike.setdefault((places[name].seed, _what_is_guessed(children[name])), {})[name] = curve
    return [
        {"run": name, "other": other, "step": reached and reached.step, "factor": reached and reached.factor}
        for group in alike.values()
        for name, others in compared(group).items()
        for other, reached in others.items()
    ]


def _what_is_guessed(child: RunRecipe) -> str:
    """A key that is equal for runs with comparable losses."""
    settings = child.model_dump(mode="json")
    texts = settings.get("text") or {
        language: language_settings["text"]
        for language, language_settings in (settings.get("languages") or {}).items()
    }
    tokenizer = child.folder / "student" / "final" / "tokenizer.json"
    return json.dumps(
        [
            texts,
            settings.get("corpora"),
            settings.get("masking"),
            hash_file(tokenizer) if tokenizer.is_file() else None,
        ],
        sort_keys=True,
    )


def _check_run(pipelines: Pipelines, name: str, child: RunRecipe) -> None:
    pipelines[child.recipe].check(child, Command(pipelines))


def plan_grid(recipe: GridRecipe, console: Console, pipelines: Pipelines) -> list[Conflict]:
    """Plan each run; a run that reads models that earlier runs have yet to make is only checked, and so is
    one of another seed than the first.
    """
    children, places = children_of(recipe), places_of(recipe)
    first = recipe.seeds[0] if recipe.seeds else None
    own: dict[str, list[Conflict]] = {}
    for number, (name, child) in enumerate(children.items()):
        console.rule(escape(name))
        earlier = dict(list(children.items())[:number])
        pipeline = pipelines[child.recipe]
        refused: list[Conflict] = []
        collect({name: child}, partial(_check_run, pipelines), refused)
        if refused:
            own[name] = report_conflicts(refused, console)
        elif places[name].seed not in (None, first):
            # The same sizes and times: a grid of ten seeds is planned as fast as one.
            own[name] = []
            console.print(f"as {places[name].variant}-seed{first}", markup=False)
        elif waits := awaited(child, earlier):
            own[name] = []
            console.print(f"can be planned once these exist: {', '.join(waits)}", markup=False)
        else:
            own[name] = pipeline.plan(child, console, pipelines)
    console.rule(escape(recipe.name))
    for name, conflicts in own.items():
        console.print(f"{name}: {counted(conflicts)}", markup=False)
    return [
        Conflict(f"{name}: {conflict.what}", conflict.remedy, conflict.level)
        for name, conflicts in own.items()
        for conflict in conflicts
    ]


PIPELINE = Pipeline(
    GridRecipe,
    check,
    prepare,
    (Stage("evaluate", evaluate), Stage("report", write_report)),
    plan_grid,
    distributed=False,
)
