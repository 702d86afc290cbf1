"""Preflight of a balance run: the size of the text, what each model will see, and times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from polydistill.config.balance import BalanceRecipe
from polydistill.disk import Json
from polydistill.pipelines.balance.state import steps_of
from polydistill.pipelines.pipeline import Pipelines
from polydistill.pipelines.probe.plan import plan_tasks
from polydistill.pipelines.stages.conflicts import Conflict, collect, report_conflicts
from polydistill.pipelines.stages.engine import plan_engine
from polydistill.pipelines.stages.languages import wrong_languages
from polydistill.pipelines.stages.planning import (
    CHARACTERS_OF_A_TOKEN,
    further_texts,
    measure_text,
    print_settings,
    step_seconds,
)
from polydistill.pipelines.stages.training import random_model
from polydistill.reports.progress import clock
from polydistill.tokenization.union import Planned
from polydistill.training.arguments import check_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Cost of a step with a live teacher's forward pass, relative to the student's passes alone.
LIVE_TEACHER = 4 / 3


def plan_balance(recipe: BalanceRecipe, console: Console, _: Pipelines) -> list[Conflict]:
    """Print settings, sizes and times of a balance run; returns its conflicts."""
    print_settings(recipe, console, training=check_arguments(recipe.training))
    conflicts = [*plan_engine(recipe, console), *further_texts(recipe), *wrong_languages(recipe)]
    sizes = collect(
        recipe.languages,
        lambda name, s: measure_text(s.text, f"languages.{name}.text", [], recipe.corpora.block_lines),
        conflicts,
    )
    training = 1 - recipe.corpora.held_out_share
    characters = {}
    for language, size in sizes.items():
        cap, available = recipe.languages[language].max_characters, round(size.characters * training)
        characters[language] = available if cap is None else min(cap, available)
        if cap is not None and cap > available:
            conflicts.append(
                Conflict(
                    f"languages.{language}.max_characters {cap:,}: the text has about {available:,} to train "
                    "on",
                    "ask for fewer, leave it out, or add text",
                )
            )
    if recipe.probe.tasks:
        conflicts += plan_tasks(recipe.probe.tasks, console, field="probe.tasks")[2]
    if len(sizes) == len(recipe.languages):
        models = collect(
            {"model": recipe}, lambda _, r: random_model(r, Planned(r.tokenizer.size)), conflicts
        )
        if models:
            _print(recipe, characters, models["model"], console)
    return report_conflicts(conflicts, console)


def _print(
    recipe: BalanceRecipe, characters: dict[str, int], model: PreTrainedModel, console: Console
) -> None:
    """Print the characters that each model sees, its steps, and their time."""
    rows = model.get_input_embeddings().weight.numel()
    console.print(
        f"model: {recipe.model.model_type}, {recipe.tokenizer.size:,} pieces, {model.num_parameters():,} "
        f"parameters, {rows:,} of them embeddings",
        markup=False,
    )
    base = check_arguments(recipe.training)
    seconds = step_seconds(recipe, model, base, recipe.scoring.top_k)
    table = Table(box=box.SIMPLE)
    for name in ("model", "characters", "steps", "time, at most"):
        table.add_column(name, justify="left" if name == "model" else "right")
    total = 0.0

    def add(name: str, seen: dict[str, int], epochs: float | None, more: Json, factor: float) -> None:
        nonlocal total
        arguments = check_arguments(recipe.training | more)
        examples = round(sum(seen.values()) / CHARACTERS_OF_A_TOKEN / recipe.corpora.max_length)
        steps = steps_of(epochs, examples, arguments)
        share = arguments["per_device_train_batch_size"] / base["per_device_train_batch_size"]
        time = seconds * factor * share * steps * arguments["gradient_accumulation_steps"]
        total += time
        table.add_row(name, f"{sum(seen.values()):,}", f"{steps:,}", clock(time))

    for language, settings in recipe.languages.items():
        if settings.teacher is None:
            add(
                f"teacher of {language}",
                {language: characters[language]},
                recipe.teachers.epochs,
                recipe.teachers.training,
                1.0,
            )
    smallest = min(characters.values())
    for name, student in recipe.students.items():
        limit = {"none": None, "smallest": smallest}.get(str(student.truncate), student.truncate)
        seen = {
            language_name: size if limit is None else min(size, int(limit))
            for language_name, size in characters.items()
        }
        live = student.labels != "gold" and student.predictions == "live"
        add(name, seen, student.epochs, student.training, LIVE_TEACHER if live else 1.0)
    console.print(table)
    console.print(
        f"in all about {clock(total)}, without vocabulary, corpora, evaluation and probes; epochs "
        f"assume {CHARACTERS_OF_A_TOKEN:g} characters per token",
        markup=False,
    )
