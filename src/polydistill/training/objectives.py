"""What a student minimises: stored labels, a live teacher, or a live teacher for each language.

An objective computes the loss of a part of a micro-batch. Losses are sums over positions, divided by the mean
number of positions in a whole step. So neither accumulation nor data parallelism changes the loss, and every
position has the same weight, in texts of all lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from polydistill.config.extract import Losses
from polydistill.config.shared import Distillation, LossWeight
from polydistill.losses.live import OutputLayer, live_distillation
from polydistill.losses.schedules import scheduled_weight
from polydistill.losses.sparse import sparse_soft_cross_entropy
from polydistill.losses.targets import soft_targets
from polydistill.models.features import masked_features, output_layer
from polydistill.training.profile import FORWARD, LOSS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Head = tuple[Tensor, Tensor | None]
# The losses of a live teacher, in the order of their sums.
LOSSES = ("kd", "mlm", "cosine", "relation", "logits")


class Counts(NamedTuple):
    """Divisors of the sums over a part's positions.

    masked, attended  mean positions of a whole step, over all micro-batches and processes
    processes         that share a step: data parallelism averages gradients over them
    """

    masked: float
    attended: float
    processes: int = 1


class Progress(NamedTuple):
    """Steps done, and all steps."""

    step: int
    total: int

    def share(self, of: float = 1.0) -> float:
        """How much of the first `of` (at most 1) of all steps is done, in [0, 1]."""
        return min(1.0, self.step / max(1.0, of * (self.total - 1)))


class Objective(Protocol):
    """What a student minimises."""

    def to(self, device: torch.device) -> None:
        """Move the tensors it computes with."""

    def __call__(
        self, model: nn.Module, head: Head, batch: Mapping[str, Tensor], counts: Counts, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """(loss of a part of a micro-batch, sums for `means`); the sums are float64, detached and additive
        over parts.

        model  the student, as its trainer wraps it
        head   (weight [V, E], bias [V] or None) of its output layer
        batch  see `training.data.collate`
        """

    def means(self, sums: Sequence[float], progress: Progress) -> dict[str, float]:
        """Logged values: losses in nats per position, and weights that change."""


class Labels:
    """Base of objectives at masked positions, with gold tokens and teachers' predictions: lambda per
    language, the log.

    languages  in the order of their indices in batches
    labels     language → its labels, where they are not `distillation.labels`
    """

    def __init__(
        self, distillation: Distillation, languages: Sequence[str], labels: Mapping[str, str] | None = None
    ) -> None:
        self.distillation, self.languages = distillation, list(languages)
        self.labels = [(labels or {}).get(language, distillation.labels) for language in languages]

    def to(self, device: torch.device) -> None:
        """Nothing to move."""

    def annealed_weight(self, progress: Progress) -> float:
        """Lambda at a step, for languages with both kinds of labels."""
        return weight_at(self.distillation.weight, progress.share(self.distillation.annealing_share))

    def teacher_weights(self, progress: Progress) -> list[float]:
        """Each language's lambda at a step."""
        known = {"both": self.annealed_weight(progress), "soft": 1.0, "gold": 0.0}
        return [known[labels] for labels in self.labels]

    def sums(self, mlm: Tensor, kd: Tensor, loss: Tensor, language: Tensor, *, taught: bool) -> Tensor:
        """[3 + 2 languages] sums of MLM [N] and KD [N], positions with KD; by language, sums of the loss [N]
        and positions.

        taught  whether the positions have a teacher's predictions
        """
        size = len(self.languages)
        sums = torch.zeros(3 + 2 * size, dtype=torch.float64, device=loss.device)
        sums[0], sums[1], sums[2] = mlm.sum(), kd.sum(), len(kd) if taught else 0
        sums[3 : 3 + size].index_add_(0, language, loss.double())
        sums[3 + size :] = torch.bincount(language, minlength=size)
        return sums

    def means(self, sums: Sequence[float], progress: Progress) -> dict[str, float]:
        """MLM and KD, lambda where it changes, and each language's loss."""
        size = len(self.languages)
        counts = sums[3 + size :]
        total = max(1.0, sum(counts))
        means = {"mlm_loss": sums[0] / total}
        # The weight changes only where both kinds of labels are used.
        if "both" in self.labels:
            means["teacher_weight"] = self.annealed_weight(progress)
        if sums[2]:
            means["kd_loss"] = sums[1] / sums[2]
        for name, loss, count in zip(self.languages, sums[3 : 3 + size], counts, strict=True):
            if count:
                means[f"loss_{name}"] = loss / count
        return {name: round(value, 5) for name, value in means.items()}


class StoredLabels(Labels):
    """lambda * KD + (1 - lambda) * MLM at masked positions (MergeDistill, L_ALL).

    KD is the cross-entropy with stored predictions; without any, the loss is MLM alone.
    """

    def scale(self, progress: Progress) -> float:
        """The factor of the whole loss at a step."""
        return 1.0

    def __call__(
        self, model: nn.Module, head: Head, batch: Mapping[str, Tensor], counts: Counts, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        with record_function(FORWARD):
            features = masked_features(
                model,
                {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]},
                batch["positions"],
            )
        weight, bias = head
        # [N, 1] lambda of each position's language.
        weights = torch.tensor(self.teacher_weights(progress), device=features.device)
        share = weights[batch["language"]][:, None]
        logprobs, ids = batch["logprobs"], batch["ids"]
        has_teacher = logprobs.shape[1] > 0
        if has_teacher:
            reading = self.distillation.tail
            soft, tail = soft_targets(logprobs, tail=reading)
            gold = 1.0 - share
            if reading == "gold":
                gold = gold + share * tail[:, None]
            target = torch.cat([gold, share * soft], dim=1)
        else:
            soft = logprobs
            target = torch.ones(len(ids), 1, device=ids.device)
            tail = torch.zeros(len(ids), device=ids.device)
        bucket = has_teacher and self.distillation.tail == "bucket" and bool(share.any())
        # Scaling the target, not the loss, saves a pass over the gradient of [V, E].
        each = self.scale(progress) * counts.processes / counts.masked
        with torch.autocast(features.device.type, enabled=False), record_function(LOSS):
            result = sparse_soft_cross_entropy(
                features,
                weight,
                bias,
                ids,
                target * each,
                tail=share[:, 0] * tail * each if bucket else None,
                top=slice(1, None),
            )
            mlm = -result.logprobs[:, 0]
            # An empty slot of a draw has probability 0; the log-probability of its piece is arbitrary.
            kd = -(soft * result.logprobs[:, 1:]).sum(-1)
            if bucket:
                kd = kd + torch.where(tail > 0, tail * result.tail_loss, 0.0)
            loss = share[:, 0] * kd + (1 - share[:, 0]) * mlm if has_teacher else mlm
        return result.loss, self.sums(mlm, kd, loss, batch["language"], taught=has_teacher)


class WeightedLabels(StoredLabels):
    """kd * KD + mlm * MLM at masked positions of one language: an extraction's losses on stored predictions.

    Both weights follow their schedules. KD is the cross-entropy with the predictions at temperature 1, that
    is the live teacher's KD plus the teacher's entropy.
    """

    def __init__(self, losses: Losses, language: str) -> None:
        super().__init__(Distillation(labels="both", tail=losses.tail), [language])
        self.losses = losses

    def scale(self, progress: Progress) -> float:
        """The sum of the weights, which lambda divides."""
        weights = loss_weights(self.losses, progress)
        return weights["kd"] + weights["mlm"]

    def teacher_weights(self, progress: Progress) -> list[float]:
        """KD's share of the two weights."""
        return [loss_weights(self.losses, progress)["kd"] / max(self.scale(progress), 1e-12)]

    def means(self, sums: Sequence[float], progress: Progress) -> dict[str, float]:
        """MLM and KD, and weights that change."""
        means = super().means(sums, progress)
        logged: dict[str, float] = {name: means[name] for name in means if name in ("kd_loss", "mlm_loss")}
        return logged | changing_weights(self.losses, progress)


class LiveTeachers(Labels):
    """lambda * T² KL(teacher ‖ student) + (1 - lambda) * MLM at masked positions (Limisiewicz et al. 2022).

    The teacher is that of the example's language, and has the student's vocabulary.
    teachers     one model per language, in the order of `languages`; they run without gradients
    temperature  of both softmaxes
    dtype        of the teachers' matrix products (by autocast)
    """

    def __init__(
        self,
        distillation: Distillation,
        languages: Sequence[str],
        *,
        teachers: Sequence[PreTrainedModel],
        temperature: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(distillation, languages)
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.temperature, self.dtype = temperature, dtype
        self.heads: list[Head] = []

    def to(self, device: torch.device) -> None:
        """Move the teachers."""
        for teacher in self.teachers:
            teacher.to(device)
        # Cast once, not once per step: autocast caches no copy of weights without gradients.
        self.heads = [
            (weight.detach().to(self.dtype), bias) for weight, bias in map(output_layer, self.teachers)
        ]

    def __call__(
        self, model: nn.Module, head: Head, batch: Mapping[str, Tensor], counts: Counts, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        seen = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with record_function(FORWARD):
            features = masked_features(model, seen, batch["positions"])
        language, gold = batch["language"], batch["ids"][:, 0]
        # One loss for all teachers: positions are sorted by teacher, for each reads its own examples.
        order = language.argsort(stable=True)
        language, gold, positions = (
            tensor.index_select(0, order) for tensor in (language, gold, batch["positions"])
        )
        present, sizes = language.unique_consecutive(return_counts=True)
        parts = positions.split(sizes.tolist())
        theirs = [self._read(index, seen, part) for index, part in zip(present.tolist(), parts, strict=True)]
        share = torch.tensor(self.teacher_weights(progress), device=features.device)[language]
        each = counts.processes / counts.masked
        with torch.autocast(features.device.type, enabled=False), record_function(LOSS):
            result = live_distillation(
                OutputLayer(features.index_select(0, order), *head),
                theirs,
                gold,
                share * each,
                (1 - share) * each,
                temperature=self.temperature,
                masked=torch.ones_like(gold, dtype=torch.bool),
            )
        loss = share * result.kd + (1 - share) * result.mlm
        return result.loss, self.sums(result.mlm, result.kd, loss, language, taught=True)

    @torch.no_grad()
    def _read(self, index: int, inputs: dict[str, Tensor], positions: Tensor) -> OutputLayer:
        """A teacher's output layer with features at flat positions [N]; it sees only its own rows."""
        width = inputs["input_ids"].shape[1]
        rows, within = (positions // width).unique(return_inverse=True)
        of_teacher = {name: values.index_select(0, rows) for name, values in inputs.items()}
        with torch.autocast(positions.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = masked_features(self.teachers[index], of_teacher, within * width + positions % width)
        return OutputLayer(features.to(self.dtype), *self.heads[index])


def loss_weights(losses: Losses, progress: Progress) -> dict[str, float]:
    """Each loss's weight at a step."""
    return {name: weight_at(getattr(losses, name), progress.share()) for name in LOSSES}


def changing_weights(losses: Losses, progress: Progress) -> dict[str, float]:
    """The weights that change, for the log."""
    return {
        f"{name}_weight": round(weight, 5)
        for name, weight in loss_weights(losses, progress).items()
        if getattr(losses, name).schedule != "constant"
    }


def weight_at(weight: LossWeight, share: float) -> float:
    """A weight after a share of its schedule's steps."""
    last = weight.first if weight.last is None else weight.last
    return scheduled_weight(share, first=weight.first, last=last, schedule=weight.schedule)
