"""`training:` of a recipe: transformers' arguments by their own names, with defaults for this work."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from polydistill.errors import RecipeError
from polydistill.models.precision import computes_in_bfloat16

# What a recipe may not set, for the run depends on it.
RESERVED = {"output_dir", "seed", "data_seed", "remove_unused_columns", "max_grad_norm_type", "do_train"}


def defaults() -> dict[str, Any]:
    """The arguments that a recipe starts from."""
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


def check(values: dict[str, Any]) -> dict[str, Any]:
    """Defaults and a recipe's values together; RecipeError for a name that TrainingArguments lacks."""
    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    for name in values:
        if name in RESERVED:
            raise RecipeError(
                f"training.{name}", values[name], "is set by the run itself", "use `output` and `seed`"
            )
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            remedy = f"did you mean {near[0]!r}?" if near else "see transformers.TrainingArguments"
            raise RecipeError(
                f"training.{name}", values[name], "TrainingArguments has no such argument", remedy
            )
    merged = defaults() | values
    if merged["max_steps"] is None or not isinstance(merged["max_steps"], int) or merged["max_steps"] < 1:
        raise RecipeError(
            "training.max_steps",
            merged["max_steps"],
            "not a positive whole number",
            "say how many steps to train: languages are drawn for ever, so there are no epochs",
        )
    # One older whole checkpoint has to stay while a newer one is being written.
    merged["save_total_limit"] = max(2, merged["save_total_limit"] or 2)
    return merged


def training_arguments(values: dict[str, Any], output: Path, *, seed: int) -> TrainingArguments:
    """TrainingArguments of a checked dictionary (see `check`)."""
    try:
        return TrainingArguments(
            output_dir=str(output), seed=seed, data_seed=seed, remove_unused_columns=False, **values
        )
    except (ValueError, TypeError) as error:
        raise RecipeError(
            "training", None, f"refused by transformers ({str(error).splitlines()[0]})", "mend it"
        ) from error
