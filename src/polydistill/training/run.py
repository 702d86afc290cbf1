"""Training a student, from the last complete checkpoint if there is one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import load_model
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
)

from polydistill.errors import RunFolderError
from polydistill.models.attention import attention_for
from polydistill.models.memory import keep_freed_memory
from polydistill.processes import wait_for_all
from polydistill.reports.progress import Count, uncounted
from polydistill.training.arguments import Arguments, training_arguments
from polydistill.training.checkpoints import explain_pickles, fault_of, finished_state, last_checkpoint
from polydistill.training.data import (
    LanguageData,
    LanguageDataset,
    TrainingExample,
    collate_parts,
    expected_size,
    phases_of,
)
from polydistill.training.objectives import Objective
from polydistill.training.progress import Progress
from polydistill.training.sampler import LanguageSampler
from polydistill.training.trainer import DistillationTrainer

# The cost of one more part of a micro-batch, in padded tokens (`python -m benchmarks parts`). On a CPU (True)
# it is a pass over the weights and their gradients; on a GPU (False) also the launch of its kernels.
PART_OVERHEAD = {True: 64, False: 4096}


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the held-out loss no longer improves, and keep the best weights.

    examples     masked once, the same at every evaluation
    patience     evaluations without improvement before training stops
    evaluations  over the whole training, evenly spaced
    """

    examples: Sequence[TrainingExample]
    patience: int
    evaluations: int

    def arguments(self, max_steps: int) -> Arguments:
        """Of TrainingArguments; every evaluation has a checkpoint, for the best must exist at the end."""
        every = max(1, max_steps // self.evaluations)
        return {
            "eval_strategy": "steps",
            "eval_steps": every,
            "save_strategy": "steps",
            "save_steps": every,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            # The count of evaluations without improvement survives a crash.
            "restore_callback_states_from_checkpoint": True,
        }


def train(
    model: PreTrainedModel,
    languages: Mapping[str, LanguageData],
    probabilities: Sequence[float],
    *,
    folder: Path,
    arguments: Arguments,
    objective: Objective,
    pad_id: int,
    max_length: int,
    seed: int,
    say: Callable[[str], None],
    count: Count = uncounted,
    callbacks: Sequence[TrainerCallback] = (),
    stopping: EarlyStopping | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place; return the log, a dictionary for each logged step.

    languages      name → examples, in the order of `probabilities`
    folder         of the checkpoints; the same call with the same folder resumes from the last complete one
    arguments      of TrainingArguments, checked
    objective      what the model minimises
    max_length     tokens of the longest sequence
    count          takes each step
    callbacks      further callbacks of transformers
    stopping       when to stop before `max_steps`
    """
    if stopping is not None:
        # Silences a warning about tied weights, which a checkpoint holds once.
        logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
        arguments = arguments | stopping.arguments(arguments["max_steps"])
        callbacks = [*callbacks, EarlyStoppingCallback(stopping.patience)]
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    settings = training_arguments(arguments, folder, seed=seed)
    # Several GPUs need torchrun: by itself Trainer would wrap the model in DataParallel.
    settings._n_gpu = min(1, settings.n_gpu)
    sampler = _sampler(languages, probabilities, settings)
    trainer = DistillationTrainer(
        objective=objective,
        languages=list(languages),
        train_sampler=sampler,
        model=model,
        args=settings,
        train_dataset=LanguageDataset(list(languages.values()), len(sampler)),
        eval_dataset=None if stopping is None else list(stopping.examples),
        step_size=expected_size(list(languages.values()), probabilities, sampler.batch_size),
        data_collator=partial(
            collate_parts, pad_id=pad_id, overhead_tokens=PART_OVERHEAD[settings.device.type == "cpu"]
        ),
        callbacks=[Progress(say, count, folder.parent.name), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if settings.device.type == "cpu":
        keep_freed_memory()
    # All processes see the same checkpoints before one of them writes the next.
    checkpoint = last_checkpoint(folder)
    wait_for_all()
    # A run killed after it stopped, before its model was written, has nothing left to train.
    ended = stopping and finished_state(checkpoint, total=settings.max_steps, patience=stopping.patience)
    if ended is not None:
        trainer.state = ended
    else:
        with attention_for(settings.device, max_length), explain_pickles(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stopping is not None:
        # Trainer does so too, but by the folder's path when the checkpoint was written, and failure only
        # warns.
        _load_weights(model, folder / f"checkpoint-{trainer.state.best_global_step}")
    return [dict(entry) for entry in trainer.state.log_history]


def read_tokens(model: PreTrainedModel, operations: float) -> int:
    """Tokens that a training read, padding included, from Trainer's count of operations (`total_flos`).

    That is 6 x parameters without embeddings x tokens.
    """
    return int(operations / (6 * model.num_parameters(exclude_embeddings=True)) + 0.5)


def _sampler(
    languages: Mapping[str, LanguageData], probabilities: Sequence[float], settings: TrainingArguments
) -> LanguageSampler:
    """Draws whole steps. Cutting them into micro-batches and sharing them among processes changes no step."""
    micro_batches = settings.gradient_accumulation_steps * settings.world_size
    return LanguageSampler(
        [data.lengths for data in languages.values()],
        probabilities,
        phases=[phases_of(data) for data in languages.values()],
        batch_size=settings.per_device_train_batch_size * micro_batches,
        num_batches=settings.max_steps,
        seed=settings.seed,
    )


def _load_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Load a checkpoint's weights into the model, in place."""
    file = checkpoint / "model.safetensors"
    if not file.is_file():
        raise RunFolderError(
            "output",
            str(checkpoint),
            "the best checkpoint of the training is missing",
            "remove its folder `checkpoints` and run again: this model is then trained again",
        )
    fault = fault_of(checkpoint)
    if fault is not None:
        raise RunFolderError(
            "output",
            str(checkpoint),
            f"the best checkpoint of the training is damaged: {fault}",
            "remove its folder `checkpoints` and run again: this model is then trained again",
        )
    load_model(model, file)
