"""Progress of training: a line per log entry, with each language's loss and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Progress(TrainerCallback):
    """Prints a line per log entry.

    say  prints a line
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.started = 0.0
        self.first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.started, self.first_step = time.perf_counter(), state.global_step
        if state.global_step:
            self.say(f"resuming at step {state.global_step}")

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
        done = state.global_step - self.first_step
        seconds = time.perf_counter() - self.started
        left = seconds / max(1, done) * (state.max_steps - state.global_step)
        languages = "".join(
            f"{name[5:]} {value:.2f}  " for name, value in logs.items() if name.startswith("loss_")
        )
        kd = f"kd {logs['kd_loss']:.3f}  " if "kd_loss" in logs else ""
        states = "".join(
            f"{name} {logs[f'{name}_loss']:.3f}  "
            for name in ("cosine", "relation")
            if f"{name}_loss" in logs
        )
        self.say(
            f"step {state.global_step}/{state.max_steps}  {kd}mlm {logs.get('mlm_loss', logs['loss']):.3f}  "
            f"{states}{languages}{clock(left)} left"
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if args.load_best_model_at_end and state.best_global_step is not None:
            early = (
                f"stopped early at step {state.global_step}: " if state.global_step < state.max_steps else ""
            )
            self.say(f"{early}step {state.best_global_step} has the best weights on held-out text")


def clock(seconds: float) -> str:
    """Seconds as 1:02:03, or 2:03."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
