"""Profile: a few training steps of a recipe, and where their time goes. The run itself does not move on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from polydistill.config import BalanceRecipe, ExtractRecipe, MergeRecipe, ProbeRecipe, load_recipe
from polydistill.config.models import Distillation
from polydistill.errors import RecipeError
from polydistill.files import write_json
from polydistill.recipes import merge, pretrain
from polydistill.recipes.merge_scoring import score_teachers
from polydistill.recipes.merge_training import initial_student, language_labels, training_data
from polydistill.recipes.run_folder import Run, open_run
from polydistill.training import WARM_UP_STEPS, StepProfiler, check_arguments, train

PROFILED_STEPS = 5


def profile_recipe(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    steps: int = PROFILED_STEPS,
    update: bool = False,
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run a recipe as far as its training, train some steps and throw them away; the summary of StepProfiler.

    Also writes profile/profile.json and profile/trace.json into the run's folder.
    """
    loaded = load_recipe(recipe, overrides)
    if isinstance(loaded, ProbeRecipe):
        raise RecipeError(
            "recipe", loaded.recipe, "this kind trains no model", "profile a merge or a pre-training"
        )
    if isinstance(loaded, ExtractRecipe | BalanceRecipe):
        raise RecipeError(
            "recipe", loaded.recipe, "is not profiled yet", "run `polydistill plan`, which times a step"
        )
    run = open_run(loaded, show=show, update=update)
    arguments = check_arguments(loaded.training)
    with run.claim():
        if isinstance(loaded, MergeRecipe):
            state = merge.prepare(loaded, run, arguments)
            run.record_recipe()
            for stage in (merge.build_corpora, merge.build_tokenizers, score_teachers):
                stage(state)
            model, _ = initial_student(state)
            data: Any
            data, probabilities = training_data(state)
            distillation, pad_id = loaded.distillation, state.union.special_ids["pad"]
        else:
            run.record_recipe()
            tokenizer = pretrain.build_tokenizer(loaded, run)
            corpora = pretrain.prepare_corpora(loaded, run, tokenizer)
            model = pretrain.initial_model(loaded, tokenizer)
            data, probabilities = pretrain.training_data(loaded, tokenizer, corpora)
            distillation, pad_id = Distillation(labels="gold"), tokenizer.special_ids["pad"]
        profiler = StepProfiler(steps)
        few = arguments | {
            "max_steps": steps + WARM_UP_STEPS, "save_strategy": "no", "report_to": [], "logging_steps": 10**6,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            train(
                model, data, [probabilities[language] for language in data], folder=Path(folder),
                arguments=few, distillation=distillation, pad_id=pad_id, max_length=loaded.corpora.max_length,
                seed=loaded.seed, say=run.say, callbacks=[profiler],
                labels=language_labels(loaded) if isinstance(loaded, MergeRecipe) else None,
            )  # fmt: skip
        return _write(run, profiler)


def _write(run: Run, profiler: StepProfiler) -> dict[str, Any]:
    summary = profiler.summary()
    folder = run.path / "profile"
    write_json(folder / "profile.json", summary)
    profiler.write_trace(folder / "trace.json")
    return summary


def print_profile(summary: dict[str, Any], console: Console) -> None:
    """The summary as two tables."""
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
