"""Training with a live teacher for each language: an example's teacher is its language's (Limisiewicz et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from polydistill.losses.live import LiveLoss, OutputLayer, live_distillation
from polydistill.models.features import masked_features, output_layer
from polydistill.training.profile import FORWARD, LOSS
from polydistill.training.trainer import DistillationTrainer


class TeachersTrainer(DistillationTrainer):
    """DistillationTrainer whose soft labels are whole distributions: lambda * T² KL(teacher ‖ student) + (1 - lambda) *
    MLM at masked positions, the teacher being that of the example's language, of the student's vocabulary.

    teachers     one model a language, in the order of `languages`; they run without gradients
    temperature  of both softmaxes
    dtype        what the teachers' matrices are multiplied in (by autocast)
    """

    def __init__(
        self, *, teachers: Sequence[Any], temperature: float, dtype: torch.dtype, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.teachers = [teacher.eval().requires_grad_(False).to(self.args.device) for teacher in teachers]
        # In layers of its own precision once, not once a step: autocast keeps no copy of what has no gradient.
        self.layers = [(weight.detach().to(dtype), bias) for weight, bias in map(output_layer, self.teachers)]
        self.temperature, self.dtype = temperature, dtype

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a part of a micro-batch, divided by the masked positions of a whole step."""
        bare = self.accelerator.unwrap_model(model)
        seen = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with record_function(FORWARD):
            features = masked_features(bare if bare is model else model, seen, inputs["positions"])
        language, gold = inputs["language"], inputs["ids"][:, 0]
        # One pass for all: by the teacher, for each of them reads its own examples.
        order = language.argsort(stable=True)
        language, gold, positions = (
            tensor.index_select(0, order) for tensor in (language, gold, inputs["positions"])
        )
        present, counts = language.unique_consecutive(return_counts=True)
        parts = positions.split(counts.tolist())
        theirs = [self._read(index, seen, part) for index, part in zip(present.tolist(), parts, strict=True)]
        share = torch.tensor(self.teacher_weights(), device=features.device)[language]
        each = self.position_weight(model, len(gold))
        with torch.autocast(features.device.type, enabled=False), record_function(LOSS):
            found = live_distillation(
                OutputLayer(features.index_select(0, order), *output_layer(bare)), theirs, gold, share * each,
                (1 - share) * each, temperature=self.temperature, masked=torch.ones_like(gold, dtype=torch.bool),
            )  # fmt: skip
        total = found.loss
        if model.training:
            self.check(total)
            sums = self._sums_of(found, share, language)
            self._sums = sums if self._sums is None else self._sums + sums
        return (total, None) if return_outputs else total

    def _sums_of(self, found: LiveLoss, share: Tensor, language: Tensor) -> Tensor:
        """What is logged of a micro-batch, as DistillationTrainer has it."""
        size = len(self.languages)
        sums = torch.zeros(2 + 2 * size, dtype=torch.float64, device=language.device)
        sums[0], sums[1] = found.mlm.sum(), found.kd.sum()
        each = share * found.kd + (1 - share) * found.mlm
        sums[2 : 2 + size].index_add_(0, language, each.double())
        sums[2 + size :] = torch.bincount(language, minlength=size)
        return sums

    @torch.no_grad()
    def _read(self, index: int, inputs: dict[str, Tensor], positions: Tensor) -> OutputLayer:
        """A teacher's output layer with its features at positions [N] of the flattened batch; it sees its rows alone."""
        width = inputs["input_ids"].shape[1]
        rows, within = (positions // width).unique(return_inverse=True)
        of_teacher = {name: values.index_select(0, rows) for name, values in inputs.items()}
        with torch.autocast(positions.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = masked_features(self.teachers[index], of_teacher, within * width + positions % width)
        return OutputLayer(features.to(self.dtype), *self.layers[index])
