"""Where the time of a training step goes."""

from __future__ import annotations

from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Names of the trainer's own ranges (torch.profiler.record_function).
BATCH, FORWARD, LOSS, STEP = (f"polydistill: {name}" for name in ("batch", "forward", "loss", "step"))
WARM_UP_STEPS = 2
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_flash_attention_forward")


class StepProfiler(TrainerCallback):
    """Records steps after a warm-up; `summary` then gives the time of each part.

    steps  to record; train for `steps + WARM_UP_STEPS`
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.profiler: profile

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        activities = [ProfilerActivity.CPU]
        if args.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.profiler = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=WARM_UP_STEPS, active=self.steps, repeat=1),
            acc_events=True,
        )
        self.profiler.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.profiler.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.profiler.stop()

    def summary(self) -> dict[str, float | dict[str, float]]:
        """Milliseconds per step: `parts` sum to `step`, `operators` are the largest by their own time.

        `products_share` is the share of the step in matrix products. Times are CPU times: on a GPU, where the
        CPU only launches kernels, use the trace.
        """
        events = {event.key: event for event in self.profiler.key_averages()}

        def total(*names: str) -> float:
            microseconds = sum(events[name].cpu_time_total for name in names if name in events)
            return float(microseconds) / 1000 / self.steps

        steps = sum(event.cpu_time_total for key, event in events.items() if key.startswith("ProfilerStep"))
        whole = steps / 1000 / self.steps
        optimizer = total(*(key for key in events if key.startswith("Optimizer.step#")))
        parts = {
            "waiting for a batch": total(BATCH),
            "encoder, forward": total(FORWARD),
            "output layer, loss and their gradients": total(LOSS),
            "encoder, backward": total(STEP) - total(FORWARD) - total(LOSS),
            "optimizer": optimizer,
        }
        parts["the rest: clipping, schedule, logging"] = whole - sum(parts.values())
        operators = sorted(events.values(), key=lambda event: -event.self_cpu_time_total)
        own = {
            event.key: event.self_cpu_time_total / 1000 / self.steps
            for event in operators
            if event.key.startswith("aten::")
        }
        return {
            "step": whole,
            "parts": parts,
            "products_share": sum(own.get(name, 0.0) for name in PRODUCTS) / max(1e-9, whole),
            "operators": dict(list(own.items())[:10]),
        }

    def write_trace(self, path: Path) -> None:
        """Write a trace for chrome://tracing or Perfetto."""
        self.profiler.export_chrome_trace(str(path))
