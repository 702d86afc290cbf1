"""`training:` of a recipe: TrainingArguments by their own names, with defaults for distillation."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from transformers import Trainer, TrainingArguments

from polydistill.errors import RecipeError
from polydistill.models.precision import computes_in_bfloat16
from polydistill.processes import num_processes

# Arguments that the run sets itself.
RESERVED = {"output_dir", "seed", "data_seed", "remove_unused_columns", "do_train", "resume_from_checkpoint"}
# Arguments that would upload the model during training. A recipe is often somebody else's.
SENDING = {
    "push_to_hub",
    "hub_token",
    "hub_private_repo",
    "hub_model_id",
    "hub_strategy",
    "hub_always_push",
    "hub_revision",
}
# Arguments that do not apply: evaluation follows training, and a checkpoint must hold the optimizer.
UNUSED = {"eval_strategy", "load_best_model_at_end", "save_only_model", "num_train_epochs", "eval_on_start"}
# Arguments that fine-tuning derives from `evaluations_per_epoch` and `patience`.
MEASURED = {
    "eval_steps",
    "save_strategy",
    "save_steps",
    "logging_steps",
    "save_total_limit",
    "metric_for_best_model",
    "greater_is_better",
    "restore_callback_states_from_checkpoint",
}
# Defaults of fine-tuning; the papers do not report weight decay.
FINETUNING = {
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "report_to": [],
    "disable_tqdm": True,
}
# Arguments that take any number from 0.
NUMBERS = ("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm")
# Arguments whose defaults depend on the machine. They are not part of a run's identity.
MACHINE = {"use_cpu", "bf16", "dataloader_pin_memory"}

# Names for trackers, where this release of transformers has them.
TRACKING = {
    name: value
    for name, value in {"project": "polydistill"}.items()
    if name in {field.name for field in dataclasses.fields(TrainingArguments)}
}

# Arguments that say where losses are sent.
TRACKERS = {"report_to", "run_name", "project"}

# TrainingArguments by name.
Arguments = dict[str, Any]


def defaults() -> Arguments:
    """Default arguments."""
    return {
        "max_steps": 1000,
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 1,
        "learning_rate": 5e-4,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "logging_steps": 0.01,
        "save_steps": 0.1,
        "save_total_limit": 2,
        "use_cpu": not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        "bf16": computes_in_bfloat16(),
        "report_to": ["tensorboard"],
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
    }


# An argument's name → the recipe's group that sets it.
Place = Callable[[str], str]


def _of_the_recipe(name: str) -> str:
    return "training"


def check_arguments(values: Arguments, place: Place = _of_the_recipe) -> Arguments:
    """Merge defaults and a recipe's values; RecipeError for an unknown name or a bad value.

    place  names the recipe's group of an argument, for messages
    """
    _check_names(values, RESERVED, UNUSED, place)
    merged = defaults() | values
    if not isinstance(merged["max_steps"], int) or merged["max_steps"] < 1:
        raise RecipeError(
            f"{place('max_steps')}.max_steps",
            merged["max_steps"],
            "not a positive whole number",
            "give the number of steps; languages are sampled without end, so there are no epochs",
        )
    numbers = ("per_device_train_batch_size", "gradient_accumulation_steps", "save_total_limit")
    _check_numbers(merged, numbers, place)
    # The last complete checkpoint must stay while the next is written.
    merged["save_total_limit"] = max(2, merged["save_total_limit"])
    _check_values(merged, values, place)
    return merged


def check_finetuning(values: Arguments, place: Place = _of_the_recipe) -> Arguments:
    """Merge defaults and values of fine-tuning; raises RecipeError as `check_arguments` does.

    values  a preset's (learning rate, epochs, warm-up, batch size) and a recipe's
    place   names the recipe's group of an argument, for messages
    """
    _check_names(values, RESERVED | MEASURED, UNUSED - {"num_train_epochs"}, place)
    machine = {name: value for name, value in defaults().items() if name in MACHINE}
    merged = machine | FINETUNING | values
    _check_numbers(merged, ("per_device_train_batch_size", "gradient_accumulation_steps"), place)
    for name in ("num_train_epochs", "max_steps"):
        if name in merged and not (_is_finite(merged[name]) and merged[name] > 0):
            raise RecipeError(
                f"{place(name)}.{name}", merged[name], "not a positive number", "give one, or leave it out"
            )
    if "max_steps" in merged and not isinstance(merged["max_steps"], int):
        raise RecipeError(
            f"{place('max_steps')}.max_steps", merged["max_steps"], "not a whole number", "give one"
        )
    _check_values(merged, values, place)
    return merged


def _check_values(merged: Arguments, given: Arguments, place: Place = _of_the_recipe) -> None:
    """Raise RecipeError for values that would fail only when training begins.

    given  the recipe's own values; the error names the one that is the cause
    """
    _check_kinds(given, place)
    for name in ("save_steps", "logging_steps", "eval_steps"):
        value = merged.get(name)
        if value is not None and not (_is_finite(value) and value > 0):
            raise RecipeError(
                f"{place(name)}.{name}",
                value,
                "not a number above 0",
                "give a number of steps, or a fraction of all steps below 1",
            )
    for name in NUMBERS:
        value = merged.get(name, 0)
        if not (_is_finite(value) and value >= 0):
            raise RecipeError(
                f"{place(name)}.{name}", value, "not a number >= 0", "give one, or leave it out"
            )
    for field in dataclasses.fields(TrainingArguments):
        choices = field.metadata.get("choices")
        if choices and field.name in merged and merged[field.name] not in tuple(choices):
            raise RecipeError(
                f"{place(field.name)}.{field.name}",
                merged[field.name],
                "not an allowed value",
                f"give one of {', '.join(map(str, choices))}",
            )
    # transformers' own checks; epochs are converted to steps here.
    counted = {name: value for name, value in merged.items() if name != "num_train_epochs"}
    training_arguments(counted, Path("unused"), seed=0)
    if num_processes() > 1:
        return  # Trainers of several processes wait for each other.
    reason = refused_by_trainer(counted)
    if reason is None:
        return
    for name in given:
        # The cause is the argument without which Trainer accepts the rest.
        rest = {key: value for key, value in counted.items() if key != name} | {
            key: value for key, value in defaults().items() if key == name
        }
        if name in counted and refused_by_trainer(rest) is None:
            raise RecipeError(
                f"{place(name)}.{name}",
                given[name],
                f"refused by transformers ({reason})",
                "install what it needs, give another value, or leave it out",
            )
    raise RecipeError("training", None, f"refused by transformers ({reason})", "fix that argument")


def refused_by_trainer(values: Arguments) -> str | None:
    """Why a Trainer with these arguments cannot start; None if it can.

    Builds callbacks, optimizer, schedule and data loader for a model of four weights, and discards them.
    """
    random_state = torch.get_rng_state()
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=torch.nn.Linear(2, 2),
                args=training_arguments(values | {"torch_compile": False}, Path(folder), seed=0),
                train_dataset=[{"input_ids": [1, 2]}] * values["per_device_train_batch_size"],
                data_collator=list,
            )
            trainer.create_optimizer_and_scheduler(10)
            iter(trainer.get_train_dataloader())
    except Exception as error:  # transformers, accelerate and torch raise various types
        return " ".join(str(error).split())[:200] or type(error).__name__
    finally:
        torch.set_rng_state(random_state)
    return None


def _check_kinds(given: Arguments, place: Place) -> None:
    """Raise RecipeError for a boolean in place of a number, or the reverse.

    YAML reads `yes` as true, and Python treats true as 1.
    """
    hints = get_type_hints(TrainingArguments)
    for name, value in given.items():
        kinds = set(get_args(hints[name]) or (hints[name],))
        if kinds <= {bool, NoneType} and not isinstance(value, bool | None):
            raise RecipeError(f"{place(name)}.{name}", value, "not a boolean", "give true or false")
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise RecipeError(f"{place(name)}.{name}", value, "not a number", "give one, or leave it out")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_names(
    values: Arguments, reserved: set[str], unused: set[str], place: Place = _of_the_recipe
) -> None:
    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    for name in values:
        if name in MEASURED & reserved:
            raise RecipeError(
                f"{place(name)}.{name}",
                values[name],
                "is set by the run itself",
                "use `evaluations_per_epoch` and `patience`",
            )
        if name in SENDING:
            raise RecipeError(
                f"{place(name)}.{name}",
                values[name],
                "would upload the model to a hub during training",
                "leave it out, and upload the folder student/final yourself",
            )
        if name in reserved:
            raise RecipeError(
                f"{place(name)}.{name}",
                values[name],
                "is set by the run itself",
                "leave it out; `output` and `seed` are keys of the recipe, and the same command resumes",
            )
        if name in unused:
            raise RecipeError(f"{place(name)}.{name}", values[name], "does not apply here", "leave it out")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            remedy = f"did you mean {near[0]!r}?" if near else "see transformers.TrainingArguments"
            raise RecipeError(
                f"{place(name)}.{name}", values[name], "TrainingArguments has no such argument", remedy
            )


def _check_numbers(merged: Arguments, names: tuple[str, ...], place: Place = _of_the_recipe) -> None:
    for name in names:
        if not isinstance(merged[name], int) or merged[name] < 1:
            raise RecipeError(
                f"{place(name)}.{name}", merged[name], "not a positive whole number", "give one"
            )
    if not _is_finite(merged["learning_rate"]):
        raise RecipeError(
            f"{place('learning_rate')}.learning_rate",
            merged["learning_rate"],
            "not a number",
            "give one, such as 5e-4",
        )


def portable(merged: Arguments) -> Arguments:
    """The arguments without machine-dependent defaults and trackers: part of a student's identity."""
    usual = defaults()
    kept = {
        name: value
        for name, value in merged.items()
        if name not in TRACKERS and (name not in MACHINE or value != usual[name])
    }
    # Earlier versions had this one in the identity; where losses are sent changes no weight.
    return kept | ({"report_to": usual["report_to"]} if "report_to" in merged else {})


def training_arguments(values: Arguments, output: Path, *, seed: int) -> TrainingArguments:
    """TrainingArguments of checked values, for one of the processes that share a step."""
    shared = TRACKING | values | _shared_out(values, num_processes())
    try:
        return TrainingArguments(
            output_dir=str(output), seed=seed, data_seed=seed, remove_unused_columns=False, **shared
        )
    except Exception as error:  # transformers and accelerate raise various types
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            "training", None, f"refused by transformers ({reason})", "fix that argument"
        ) from error


def _shared_out(values: Arguments, processes: int) -> Arguments:
    """One process's share of a step. The recipe gives the whole step, whatever the number of processes."""
    names = "per_device_train_batch_size", "gradient_accumulation_steps"
    for name in names:
        if values[name] % processes == 0:
            return {name: values[name] // processes}
    raise RecipeError(
        f"training.{names[0]}",
        values[names[0]],
        f"a step's {values[names[0]]} x {values[names[1]]} examples do not divide by {processes} processes",
        f"choose a multiple of {processes}, or another number of processes",
    )
