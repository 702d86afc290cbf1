"""The training loop: transformers.Trainer with the loss at masked positions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers.trainer_utils import EvalLoopOutput

from polydistill.config.shared import Distillation
from polydistill.losses.schedules import teacher_weight
from polydistill.losses.sparse import sparse_soft_cross_entropy
from polydistill.losses.targets import soft_targets
from polydistill.models.features import masked_features, output_layer
from polydistill.training.data import StepSize
from polydistill.training.nonfinite import WatchedTrainer
from polydistill.training.profile import BATCH, FORWARD, LOSS, STEP


class DistillationTrainer(WatchedTrainer):
    """Trainer whose loss is lambda * KD + (1 - lambda) * MLM at masked positions (MergeDistill, L_ALL).

    The loss is a sum over positions divided once by the number of masked positions that a whole step has on average,
    over all micro-batches and processes: accumulation and data parallelism change nothing, and every masked position of
    the training weighs the same, in texts of all lengths.

    step_size  that number, and the tokens of a step
    """

    def __init__(
        self,
        *,
        distillation: Distillation,
        languages: Sequence[str],
        train_sampler: Any,
        step_size: StepSize,
        labels: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.distillation = distillation
        self.languages = list(languages)
        self.labels = [(labels or {}).get(language, distillation.labels) for language in languages]
        self.sampler, self.step_size = train_sampler, step_size
        # Tells Trainer that losses are divided already (5.23 reads the first, older versions the second).
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True
        # Sums since the last log: MLM, KD, each language's loss, each language's masked tokens.
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

    def annealed_weight(self) -> float:
        """Lambda at this step, for languages that learn from both kinds of labels."""
        settings = self.distillation
        over = max(1.0, settings.annealing_share * (self.state.max_steps - 1))
        return teacher_weight(
            min(1.0, self.state.global_step / over),
            first=settings.teacher_weight,
            last=settings.final_teacher_weight,
            schedule=settings.schedule,
        )

    def loss_scale(self) -> float:
        """What the whole loss is multiplied by at this step."""
        return 1.0

    def position_weight(self, model: Any, num_positions: int) -> float:
        """What one position's loss is multiplied by: in training the same in all steps, otherwise the loss of a batch is
        a mean over its masked positions.
        """
        if not model.training:
            return self.loss_scale() / max(1, num_positions)
        # Data parallelism averages gradients over processes; a step is of all of them.
        processes: int = self.accelerator.num_processes
        return self.loss_scale() * processes / self.step_size.masked

    def teacher_weights(self) -> list[float]:
        """Each language's lambda at this step."""
        known = {"both": self.annealed_weight(), "soft": 1.0, "gold": 0.0}
        return [known[labels] for labels in self.labels]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a part of a micro-batch, divided by the masked positions of a whole step."""
        bare = self.accelerator.unwrap_model(model)
        with record_function(FORWARD):
            features = masked_features(
                bare if bare is model else model,
                {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]},
                inputs["positions"],
            )
        weight, bias = output_layer(bare)
        # [N, 1] lambda of each position's language.
        share = torch.tensor(self.teacher_weights(), device=features.device)[inputs["language"]][:, None]
        logprobs, ids = inputs["logprobs"], inputs["ids"]
        has_teacher = logprobs.shape[1] > 0
        if has_teacher:
            settings = self.distillation
            soft, tail = soft_targets(logprobs, tail=settings.tail)
            gold = 1.0 - share
            if settings.tail == "gold":
                gold = gold + share * tail[:, None]
            target = torch.cat([gold, share * soft], dim=1)
        else:
            settings, soft = self.distillation, logprobs
            target, tail = (
                torch.ones(len(ids), 1, device=ids.device),
                torch.zeros(len(ids), device=ids.device),
            )
        bucket = has_teacher and settings.tail == "bucket" and bool(share.any())
        # It multiplies the target rather than the loss, so that the gradient of [V, E] needs no pass of its own.
        each = self.position_weight(model, len(ids))
        with torch.autocast(features.device.type, enabled=False), record_function(LOSS):
            result = sparse_soft_cross_entropy(
                features, weight, bias, ids, target * each,
                tail=share[:, 0] * tail * each if bucket else None, top=slice(1, None),
            )  # fmt: skip
        loss = result.loss
        if model.training:
            self.check(loss)
            self._record(
                result.logprobs,
                result.tail_loss,
                soft,
                tail if bucket else None,
                inputs["language"],
                share[:, 0],
            )
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
        """Add both loss terms and each language's loss in nats for a masked token, and the share of the time that
        training waited for batches, since the last log.
        """
        if "loss" in logs and self._sums is not None:
            now = time.perf_counter()
            waiting = self._waited / max(1e-9, now - self._counting_since)
            sums = self.accelerator.reduce(self._sums, reduction="sum").tolist()
            logs = {**logs, **self._means(sums), "waiting_share": round(waiting, 4)}
            self._sums, self._waited, self._counting_since = None, 0.0, now
        super().log(logs, *arguments, **keywords)

    def _record(
        self,
        logprobs: Tensor,
        tail_loss: Tensor,
        soft: Tensor,
        tail: Tensor | None,
        language: Tensor,
        share: Tensor,
    ) -> None:
        """Add a micro-batch to the sums; they stay on the device until they are logged."""
        mlm = -logprobs[:, 0]
        # An empty slot of a draw has probability zero, and its piece any log-probability.
        kd = -(soft * logprobs[:, 1:]).sum(-1)
        if tail is not None:
            kd = kd + torch.where(tail > 0, tail * tail_loss, 0.0)
        loss = share * kd + (1 - share) * mlm if logprobs.shape[1] > 1 else mlm
        size = len(self.languages)
        sums = torch.zeros(2 + 2 * size, dtype=torch.float64, device=loss.device)
        sums[0], sums[1] = mlm.sum(), kd.sum()
        sums[2 : 2 + size].index_add_(0, language, loss.double())
        sums[2 + size :] = torch.bincount(language, minlength=size)
        self._sums = sums if self._sums is None else self._sums + sums

    def _means(self, sums: list[float]) -> dict[str, float]:
        size = len(self.languages)
        counts = sums[2 + size :]
        total = max(1.0, sum(counts))
        means = {"mlm_loss": sums[0] / total}
        # Only where both kinds of labels are weighed is there a weight that changes.
        if "both" in self.labels:
            means["teacher_weight"] = self.annealed_weight()
        if sums[1]:
            means["kd_loss"] = sums[1] / total
        for name, loss, count in zip(self.languages, sums[2 : 2 + size], counts, strict=True):
            if count:
                means[f"loss_{name}"] = loss / count
        return {name: round(value, 5) for name, value in means.items()}

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
