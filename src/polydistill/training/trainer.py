"""The training loop: transformers.Trainer with an objective."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers.trainer_utils import EvalLoopOutput

from polydistill.models.features import output_layer
from polydistill.training.data import StepSize
from polydistill.training.nonfinite import WatchedTrainer
from polydistill.training.objectives import Counts, Objective, Progress
from polydistill.training.profile import BATCH, STEP


class DistillationTrainer(WatchedTrainer):
    """Trainer whose loss is an objective's, part by part of a micro-batch.

    objective  what the student minimises
    languages  their names, by their numbers in batches
    step_size  positions of a step on average, over all micro-batches and processes
    """

    def __init__(
        self,
        *,
        objective: Objective,
        languages: Sequence[str],
        train_sampler: Any,
        step_size: StepSize,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.objective, self.languages = objective, list(languages)
        self.objective.to(self.args.device)
        self.sampler, self.step_size = train_sampler, step_size
        # Tells Trainer that losses are divided already (5.23 reads the first, older versions the second).
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True
        # The objective's sums since the last log.
        self._sums: Tensor | None = None
        # Seconds waited for batches, and when counting began, since the last log.
        self._waited = 0.0
        self._counting_since = time.perf_counter()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.sampler

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        """The micro-batches of a step; the time that the step waits for them is counted."""
        started = time.perf_counter()
        with record_function(BATCH):
            samples = super().get_batch_samples(*arguments, **keywords)
        self._waited += time.perf_counter() - started
        return samples

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """A micro-batch, forward and backward, part by part; its loss, the sum of its parts'."""
        *others, last = inputs["parts"]
        with record_function(STEP):
            losses = []
            for part in others:
                # Processes add up their gradients once, at the last part.
                with self.accelerator.no_sync(model):
                    losses.append(super().training_step(model, part, num_items_in_batch))
            losses.append(super().training_step(model, last, num_items_in_batch))
            return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of a micro-batch, about."""
        return sum(super(DistillationTrainer, self).floating_point_ops(part) for part in inputs["parts"])

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        # Trainer scales the loss itself where this is None.
        return torch.tensor(
            sum(len(part["positions"]) for batch in batch_samples for part in batch["parts"]), device=device
        )

    @property
    def progress(self) -> Progress:
        """Where the training is."""
        return Progress(self.state.global_step, self.state.max_steps)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a part of a micro-batch, divided by the positions of a whole step; outside of training, a mean over
        its own masked positions.
        """
        if model.training:
            counts = Counts(*self.step_size, processes=self.accelerator.num_processes)
        else:
            counts = Counts(max(1, len(inputs["positions"])), max(1, int(inputs["attention_mask"].sum())))
        head = output_layer(self.accelerator.unwrap_model(model))
        loss, sums = self.objective(model, head, inputs, counts, self.progress)
        if model.training:
            self.check(loss)
            self._sums = sums if self._sums is None else self._sums + sums
        return (loss, None) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The held-out loss that early stopping compares: a mean over masked positions, every example once, whatever the
        batches and the number of processes.
        """
        examples: Any = self.eval_dataset
        # A sharded model runs in all processes together: there each of them sees everything.
        shared = self.args.world_size > 1 and not self.is_fsdp_enabled
        own = examples[self.args.process_index :: self.args.world_size] if shared else examples
        model: Any = self.model
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for start in range(0, len(own), self.args.eval_batch_size):
            micro: Any = self.data_collator(own[start : start + self.args.eval_batch_size])
            for part in micro["parts"]:
                count = len(part["positions"])
                with torch.no_grad(), self.compute_loss_context_manager():
                    loss = self.compute_loss(model, self._prepare_inputs(part))
                sums += torch.stack([loss.double() * count, torch.full_like(loss, count).double()])
        if shared:
            sums = self.accelerator.reduce(sums, reduction="sum")
        total, count = sums.tolist()
        metrics = {f"{metric_key_prefix}_loss": total / max(1.0, count)}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(examples))

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        """Add what the objective logs, and the share of the time that training waited for batches, since the last log."""
        if "loss" in logs and self._sums is not None:
            now = time.perf_counter()
            waiting = self._waited / max(1e-9, now - self._counting_since)
            sums = self.accelerator.reduce(self._sums, reduction="sum").tolist()
            logs = {**logs, **self.objective.means(sums, self.progress), "waiting_share": round(waiting, 4)}
            self._sums, self._waited, self._counting_since = None, 0.0, now
        super().log(logs, *arguments, **keywords)

    def _examples(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        dataset: Any = self.train_dataset
        return [
            {
                "language": self.languages[language],
                "epoch": epoch,
                **dataset.languages[language].identify(row),
            }
            for language, row, epoch in batch["keys"].tolist()
        ]
