"""The training loop: transformers.Trainer with an objective."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from transformers.trainer_utils import EvalLoopOutput

from polydistill.models.features import output_layer_or_none
from polydistill.training.data import LanguageDataset, StepSize, TrainingExample
from polydistill.training.nonfinite import Batch, Origin, Samples, WatchedTrainer
from polydistill.training.objectives import Counts, Objective, Progress
from polydistill.training.profile import BATCH, STEP
from polydistill.training.sampler import LanguageSampler


class DistillationTrainer(WatchedTrainer):
    """Trainer whose loss is an objective's, computed part by part of a micro-batch.

    objective  what the student minimises
    languages  their names, by their indices in batches
    step_size  mean positions of a step, over all micro-batches and processes
    """

    def __init__(
        self,
        *,
        objective: Objective,
        languages: Sequence[str],
        train_sampler: LanguageSampler,
        step_size: StepSize,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.objective, self.languages = objective, list(languages)
        self.objective.to(self.args.device)
        self.sampler, self.step_size = train_sampler, step_size
        # Tells Trainer that losses are already divided (5.23 reads the first, older versions the second).
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True
        # The objective's sums since the last log.
        self._sums: Tensor | None = None
        # Since the last log: seconds waited for batches, and when counting began.
        self._waited = 0.0
        self._counting_since = time.perf_counter()

    def _get_train_sampler(self, train_dataset: object = None) -> LanguageSampler:
        return self.sampler

    def get_batch_samples(self, *arguments: object, **keywords: object) -> Samples:
        """The micro-batches of a step; counts the time that the step waits for them."""
        started = time.perf_counter()
        with record_function(BATCH):
            samples = super().get_batch_samples(*arguments, **keywords)
        self._waited += time.perf_counter() - started
        return samples

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Forward and backward pass of a micro-batch, part by part; returns the sum of its parts' losses."""
        *others, last = inputs["parts"]
        with record_function(STEP):
            losses = []
            for part in others:
                # Processes reduce their gradients once, at the last part.
                with self.accelerator.no_sync(model):
                    losses.append(super().training_step(model, part, num_items_in_batch))
            losses.append(super().training_step(model, last, num_items_in_batch))
            return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: Batch) -> int:
        """Estimated operations of a micro-batch."""
        return sum(super(DistillationTrainer, self).floating_point_ops(part) for part in inputs["parts"])

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor:
        # Trainer scales the loss itself where this is None.
        return torch.tensor(
            sum(len(part["positions"]) for batch in batch_samples for part in batch["parts"]), device=device
        )

    @property
    def progress(self) -> Progress:
        """Steps done, and all steps."""
        return Progress(self.state.global_step, self.state.max_steps)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The loss of a part of a micro-batch, divided by the positions of a whole step.

        Outside of training, a mean over its own masked positions.
        """
        if model.training:
            counts = Counts(*self.step_size, processes=self.accelerator.num_processes)
        else:
            counts = Counts(max(1, len(inputs["positions"])), max(1, int(inputs["attention_mask"].sum())))
        head = output_layer_or_none(self.accelerator.unwrap_model(model))
        loss, sums = self.objective(model, head, inputs, counts, self.progress)
        if model.training:
            self.check(loss)
            self._sums = sums if self._sums is None else self._sums + sums
        return (loss, None) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: object,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The held-out loss that early stopping compares: a mean over masked positions, every example once.

        It depends neither on batches nor on the number of processes.
        """
        examples: Sequence[TrainingExample] = self.eval_dataset
        # A sharded model runs in all processes together, so each sees all examples.
        shared = self.args.world_size > 1 and not self.is_fsdp_enabled
        own = examples[self.args.process_index :: self.args.world_size] if shared else examples
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for start in range(0, len(own), self.args.eval_batch_size):
            for part in self.data_collator(own[start : start + self.args.eval_batch_size])["parts"]:
                count = len(part["positions"])
                with torch.no_grad(), self.compute_loss_context_manager():
                    loss = self.compute_loss(self.model, self._prepare_inputs(part))
                sums += torch.stack([loss.double() * count, torch.full_like(loss, count).double()])
        if shared:
            sums = self.accelerator.reduce(sums, reduction="sum")
        total, count = sums.tolist()
        metrics = {f"{metric_key_prefix}_loss": total / max(1.0, count)}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(examples))

    def log(self, logs: dict[str, float], *arguments: object, **keywords: object) -> None:
        """Add the objective's values, and the share of time spent waiting for batches, since the last log."""
        if "loss" in logs and self._sums is not None:
            now = time.perf_counter()
            waiting = self._waited / max(1e-9, now - self._counting_since)
            sums = self.accelerator.reduce(self._sums, reduction="sum").tolist()
            logs = {**logs, **self.objective.means(sums, self.progress), "waiting_share": round(waiting, 4)}
            self._sums, self._waited, self._counting_since = None, 0.0, now
        super().log(logs, *arguments, **keywords)

    def _examples(self, batch: Batch) -> list[Origin]:
        dataset: LanguageDataset = self.train_dataset
        return [
            {
                "language": self.languages[language],
                "epoch": epoch,
                **dataset.languages[language].identify(row),
            }
            for language, row, epoch in batch["keys"].tolist()
        ]
