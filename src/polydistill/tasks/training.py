"""Fine-tuning an encoder with a head, with dev evaluations, from the last complete checkpoint if any."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from polydistill.models.attention import attention_for
from polydistill.models.memory import keep_freed_memory
from polydistill.tasks.heads import Feature, collate
from polydistill.training.arguments import Arguments, training_arguments
from polydistill.training.checkpoints import explain_pickles, finished_state, last_checkpoint
from polydistill.training.nonfinite import WatchedTrainer
from polydistill.training.run import read_tokens

# Kept keys of log entries; the others are times, which differ between runs.
KEPT = ("step", "epoch", "loss", "learning_rate", "grad_norm", "eval_score")


class FineTuner(WatchedTrainer):
    """Trainer whose evaluation is a function of the model.

    measure  returns a model's score on the dev set; higher is better
    """

    control: TrainerControl

    def __init__(self, *, measure: Callable[[PreTrainedModel], float], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.measure = measure
        # A head's loss is its micro-batch's mean, which Trainer divides by the number of micro-batches: not
        # all heads accept the item count that it would pass otherwise.
        self.model_accepts_loss_kwargs = False

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """The dev set's score, as `eval_score`."""
        training = self.model.training
        metrics = {"eval_score": self.measure(self.model)}
        self.model.train(training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
        """The head's own loss."""
        loss = super().compute_loss(*arguments, **keywords)
        self.check(loss[0] if isinstance(loss, tuple) else loss)
        return loss


class _Narrator(TrainerCallback):
    """Prints a line per evaluation, and evaluates the last step, whatever its number."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.loss = say, math.nan

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.global_step:
            self.say(f"resuming at step {state.global_step}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        logs = logs or {}
        self.loss = logs.get("loss", self.loss)
        if "eval_score" in logs:
            step = f"step {state.global_step}/{state.max_steps}"
            self.say(f"{step}  loss {self.loss:.3f}  dev {logs['eval_score']:.3f}")


class Patience(EarlyStoppingCallback):
    """Early stopping, counted from the first score above 0: entity F1 is 0 while a model predicts only O."""

    def check_metric_value(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metric_value: float
    ) -> None:
        if metric_value > 0 or (state.best_metric or 0) > 0:
            super().check_metric_value(args, state, control, metric_value)


def steps_of(num_features: int, arguments: Arguments) -> tuple[int, int]:
    """(steps per epoch, steps in total)."""
    batch = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
    epoch = max(1, math.ceil(num_features / batch))
    limit = arguments.get("max_steps") or 0
    return epoch, limit if limit > 0 else max(1, math.ceil(epoch * arguments["num_train_epochs"]))


def fine_tune(
    model: PreTrainedModel,
    features: Sequence[Feature],
    *,
    folder: Path,
    arguments: Arguments,
    measure: Callable[[PreTrainedModel], float],
    patience: int,
    evaluations_per_epoch: int,
    max_length: int,
    pad_id: int,
    seed: int,
    say: Callable[[str], None],
    evidence: Path | None = None,
) -> dict[str, Any]:
    """Train `model` in place; returns `best` (the best checkpoint's name), its dev `score` and `step`, the
    `log`, and the `tokens` that it read.

    features   with targets (see `heads.collate`)
    folder     of the checkpoints; the same call with the same folder resumes from the last complete one
    arguments  of TrainingArguments, checked
    measure    returns a model's dev score
    evidence   folder for a step with non-finite numbers; by default beside `folder`
    patience   evaluations without improvement that end training, counted from the first score above 0; 0: no
               limit
    """
    # Silences a warning about tied weights, which a checkpoint holds once.
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    total = steps_of(len(features), arguments)[1]
    settings = _settings(len(features), arguments, evaluations_per_epoch, folder, seed)
    # Several GPUs need torchrun: by itself Trainer would wrap the model in DataParallel.
    settings._n_gpu = min(1, settings.n_gpu)
    trainer = FineTuner(
        measure=measure,
        evidence=evidence,
        model=model,
        args=settings,
        train_dataset=list(features),
        eval_dataset=[],
        data_collator=partial(collate, pad_id=pad_id),
        callbacks=[_Narrator(say), *([Patience(patience)] if patience else [])],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if settings.device.type == "cpu":
        keep_freed_memory()
    checkpoint = last_checkpoint(folder)
    state = finished_state(checkpoint, total=total, patience=patience)
    if state is None:
        with attention_for(settings.device, max_length), explain_pickles(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        state = trainer.state
    return _record(state, total) | {"tokens": read_tokens(model, state.total_flos)}


def _settings(
    num_features: int, arguments: Arguments, evaluations_per_epoch: int, folder: Path, seed: int
) -> TrainingArguments:
    """The Trainer's arguments: it evaluates, saves and logs at the same steps, and keeps the best."""
    epoch, total = steps_of(num_features, arguments)
    every = min(total, max(1, epoch // evaluations_per_epoch))
    own: Arguments = {
        "max_steps": total,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "logging_steps": every,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_score",
        "greater_is_better": True,
        "restore_callback_states_from_checkpoint": True,
        "save_total_limit": 2,
    }
    given = {name: value for name, value in arguments.items() if name != "num_train_epochs"}
    return training_arguments(given | own, folder, seed=seed)


def _record(state: TrainerState, total: int) -> dict[str, Any]:
    """The result of `fine_tune`, from a trainer's last state.

    total  steps of the training without early stopping
    """
    return {
        "best": f"checkpoint-{state.best_global_step}",
        "score": state.best_metric,
        "step": state.best_global_step,
        "steps": state.global_step,
        "max_steps": total,
        "log": [
            {name: entry[name] for name in KEPT if name in entry}
            for entry in state.log_history
            if "loss" in entry or "eval_score" in entry
        ],
    }
