"""Progress of training: a line per log entry, with each language's loss and the time left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polydistill.reports.progress import Count, clock


class Progress(TrainerCallback):
    """Prints a line per log entry, and counts steps.

    say    prints a line
    count  takes each step
    what   is trained, for `count`
    """

    def __init__(self, say: Callable[[str], None], count: Count, what: str) -> None:
        self.say, self.count, self.what = say, count, what
        self.started = 0.0
        self.first_step = 0
        self.losses = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.started, self.first_step = time.perf_counter(), state.global_step
        if state.global_step:
            self.say(f"resuming at step {state.global_step}")
        if "tensorboard" in args.report_to:
            self.say(f"losses over time: tensorboard --logdir {os.environ['TENSORBOARD_LOGGING_DIR']}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.count(
            self.what,
            state.global_step,
            state.max_steps,
            "steps",
            left=self._left(state) if state.global_step > self.first_step else None,
            note=self.losses,
        )

    def _left(self, state: TrainerState) -> float:
        """Seconds until the last step, at the speed since this process began."""
        seconds = time.perf_counter() - self.started
        done = max(1, state.global_step - self.first_step)
        return float(seconds / done * (state.max_steps - state.global_step))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if logs and "eval_loss" in logs:
            self.say(f"step {state.global_step}/{state.max_steps}  held-out loss {logs['eval_loss']:.3f}")
        if not logs or "loss" not in logs:
            return
        languages = "".join(
            f"{name[5:]} {value:.2f}  " for name, value in logs.items() if name.startswith("loss_")
        )
        kd = f"kd {logs['kd_loss']:.3f}  " if "kd_loss" in logs else ""
        states = "".join(
            f"{name} {logs[f'{name}_loss']:.3f}  "
            for name in ("vector", "logits", "cosine", "relation")
            if f"{name}_loss" in logs
        )
        mlm = "" if "vector_loss" in logs else f"mlm {logs.get('mlm_loss', logs['loss']):.3f}  "
        self.losses = f"{kd}{mlm}{states}{languages}".rstrip()
        self.say(
            f"step {state.global_step}/{state.max_steps}  {self.losses}  {clock(self._left(state))} left"
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if args.load_best_model_at_end and state.best_global_step is not None:
            early = (
                f"stopped early at step {state.global_step}: " if state.global_step < state.max_steps else ""
            )
            self.say(f"{early}step {state.best_global_step} has the best weights on held-out text")
