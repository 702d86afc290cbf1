"""Profile a few training steps of a recipe: where their time goes. The run itself makes no progress."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from polydistill.config.load import load_recipe
from polydistill.disk import Json, write_json
from polydistill.errors import RecipeError
from polydistill.pipelines.kinds import PIPELINES
from polydistill.pipelines.pipeline import Command, prepared, run_stages
from polydistill.pipelines.run_folder import Run, open_run
from polydistill.processes import num_processes
from polydistill.training.profile import WARM_UP_STEPS, StepProfiler

PROFILED_STEPS = 5


def profile_recipe(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    steps: int = PROFILED_STEPS,
    update: bool = False,
    show: Callable[[str], None] = print,
) -> Json:
    """Run a recipe up to its training, profile some steps and discard them.

    Writes profile/profile.json and profile/trace.json into the run's folder; returns StepProfiler's summary.
    """
    loaded = load_recipe(recipe, overrides)
    if num_processes() > 1:
        raise RecipeError(
            "--profile",
            None,
            f"profiles one process, and {num_processes()} were started",
            "start it without torchrun or accelerate launch",
        )
    pipeline, command = PIPELINES[loaded.recipe], Command(PIPELINES)
    if pipeline.training is None:
        raise RecipeError(
            "recipe",
            loaded.recipe,
            "this kind does not train exactly one model",
            "profile a pre-training or a merge of the same architecture",
        )
    pipeline.check(loaded, command)
    run = open_run(loaded, show=show, update=update)
    with run.claim():
        state = prepared(pipeline, loaded, run, command)
        run_stages(pipeline, state, before="train")
        training = pipeline.training(state)
        profiler = StepProfiler(steps)
        few = {
            **training.arguments,
            "max_steps": steps + WARM_UP_STEPS,
            "save_strategy": "no",
            "report_to": [],
            "logging_steps": 10**6,
        }
        with tempfile.TemporaryDirectory() as folder:
            training.run(Path(folder), arguments=few, seed=loaded.seed, say=run.say, callbacks=[profiler])
        return _write(run, profiler)


def _write(run: Run, profiler: StepProfiler) -> Json:
    summary = profiler.summary()
    folder = run.path / "profile"
    write_json(folder / "profile.json", summary)
    profiler.write_trace(folder / "trace.json")
    return summary


def print_profile(summary: Json, console: Console) -> None:
    """Print the summary as two tables."""
    step = summary["step"]
    for title, rows in (
        (f"a training step: {step:,.0f} ms", summary["parts"]),
        ("operators by their own time", summary["operators"]),
    ):
        table = Table("", "ms", "share", title=title, title_justify="left")
        for name, milliseconds in rows.items():
            table.add_row(name, f"{milliseconds:,.1f}", f"{milliseconds / step:.0%}")
        console.print(table)
    console.print(f"matrix products: {summary['products_share']:.0%} of the step")
