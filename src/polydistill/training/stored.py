"""Training on a teacher's stored predictions with weights of an extraction's losses."""

from __future__ import annotations

from typing import Any

from polydistill.config.extract import Losses
from polydistill.config.shared import Distillation
from polydistill.training.live import loss_weights
from polydistill.training.trainer import DistillationTrainer


class StoredTrainer(DistillationTrainer):
    """DistillationTrainer whose loss is kd · KD + mlm · MLM at masked positions, both weights by their schedules.

    KD is the cross-entropy with the stored predictions, at temperature 1: LiveTrainer's KD and the teacher's entropy.
    """

    def __init__(self, *, losses: Losses, **arguments: Any) -> None:
        arguments["distillation"] = Distillation(labels="both", tail=losses.tail)
        super().__init__(**arguments)
        self.losses = losses

    def loss_scale(self) -> float:
        """The weights' sum: lambda, below, shares it out."""
        weights = loss_weights(self.losses, self)
        return weights["kd"] + weights["mlm"]

    def teacher_weights(self) -> list[float]:
        """KD's share of the two weights, for the only language."""
        return [loss_weights(self.losses, self)["kd"] / max(self.loss_scale(), 1e-12)]

    def _means(self, sums: list[float]) -> dict[str, float]:
        means = super()._means(sums)
        found: dict[str, float] = {name: means[name] for name in means if name in ("kd_loss", "mlm_loss")}
        for name, weight in loss_weights(self.losses, self).items():
            if getattr(self.losses, name).schedule != "constant":
                found[f"{name}_weight"] = round(weight, 5)
        return found
