"""Profile: a few training steps of a recipe, and where their time goes. The run itself does not move on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from polydistill.config.balance import BalanceRecipe
from polydistill.config.extract import ExtractRecipe
from polydistill.config.finetune import FinetuneRecipe
from polydistill.config.grid import GridRecipe
from polydistill.config.load import load_recipe
from polydistill.config.merge import MergeRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.probe import ProbeRecipe
from polydistill.config.shared import Distillation
from polydistill.disk import write_json
from polydistill.errors import RecipeError
from polydistill.pipelines import pretrain
from polydistill.pipelines.extract import pipeline as extract
from polydistill.pipelines.extract.scoring import score_teacher
from polydistill.pipelines.extract.state import prepare
from polydistill.pipelines.extract.student import make_models
from polydistill.pipelines.extract.student import training_data as extract_data
from polydistill.pipelines.extract.tokenizer import build_tokenizer as build_extract_tokenizer
from polydistill.pipelines.merge import pipeline as merge
from polydistill.pipelines.merge.scoring import score_teachers
from polydistill.pipelines.merge.student import initial_student, language_labels, training_data
from polydistill.pipelines.run_folder import Run, open_run
from polydistill.processes import num_processes
from polydistill.training.arguments import check_arguments
from polydistill.training.profile import WARM_UP_STEPS, StepProfiler
from polydistill.training.run import train

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
    if num_processes() > 1:
        raise RecipeError(
            "--profile", None, f"profiles one process, and {num_processes()} were started",
            "start it without torchrun or accelerate launch",
        )  # fmt: skip
    if isinstance(loaded, ProbeRecipe):
        raise RecipeError(
            "recipe", loaded.recipe, "this kind trains no model", "profile a merge or a pre-training"
        )
    if isinstance(loaded, BalanceRecipe | FinetuneRecipe | GridRecipe):
        raise RecipeError(
            "recipe",
            loaded.recipe,
            "trains many models",
            "profile a pre-training or a merge of the same architecture",
        )
    run = open_run(loaded, show=show, update=update)
    arguments = check_arguments(loaded.training)
    with run.claim():
        parts = _prepare(loaded, run, arguments)
        profiler = StepProfiler(steps)
        few = arguments | {
            "max_steps": steps + WARM_UP_STEPS, "save_strategy": "no", "report_to": [], "logging_steps": 10**6,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            train(
                folder=Path(folder), arguments=few, max_length=loaded.corpora.max_length, seed=loaded.seed,
                say=run.say, callbacks=[profiler], **parts,
            )  # fmt: skip
        return _write(run, profiler)


def _prepare(
    loaded: MergeRecipe | ExtractRecipe | PretrainRecipe, run: Run, arguments: dict[str, Any]
) -> dict[str, Any]:
    """What `train` is given, beside the settings of the profile; all stages before training are run."""
    if isinstance(loaded, ExtractRecipe):
        state = prepare(loaded, run)
        run.record_recipe()
        for stage in (extract.build_corpus, build_extract_tokenizer, score_teacher):
            stage(state)
        model, _, make_trainer = make_models(state)
        return {
            "model": model, "languages": {loaded.language: extract_data(state)}, "probabilities": [1.0],
            "distillation": Distillation(labels="gold"), "pad_id": state.trained_tokenizer.special_ids["pad"],
            "make_trainer": make_trainer,
        }  # fmt: skip
    data: Any
    if isinstance(loaded, MergeRecipe):
        merged = merge.prepare(loaded, run, arguments)
        run.record_recipe()
        for build in (merge.build_corpora, merge.build_tokenizers, score_teachers):
            build(merged)
        model, _ = initial_student(merged)
        data, probabilities = training_data(merged)
        distillation, pad_id = loaded.distillation, merged.union.special_ids["pad"]
    else:
        run.record_recipe()
        tokenizer = pretrain.build_tokenizer(loaded, run)
        corpora = pretrain.prepare_corpora(loaded, run, tokenizer)
        model = pretrain.initial_model(loaded, tokenizer)
        data, probabilities = pretrain.training_data(loaded, tokenizer, corpora)
        distillation, pad_id = Distillation(labels="gold"), tokenizer.special_ids["pad"]
    return {
        "model": model, "languages": data, "probabilities": [probabilities[language] for language in data],
        "distillation": distillation, "pad_id": pad_id,
        "labels": language_labels(loaded) if isinstance(loaded, MergeRecipe) else None,
    }  # fmt: skip


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
