"""Training with a live teacher for each language: an example's teacher is its language's (Limisiewicz et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from polydistill.losses import OutputLayer, live_distillation
from polydistill.models import masked_features, output_layer
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
        """The loss of a micro-batch, divided by the masked positions of the whole step."""
        bare = self.accelerator.unwrap_model(model)
        seen = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with record_function(FORWARD):
            features = masked_features(bare if bare is model else model, seen, inputs["positions"])
        language, gold = inputs["language"], inputs["ids"][:, 0]
        each = self.position_weight(num_items_in_batch, len(gold))
        weight, bias = output_layer(bare)
        size = len(self.languages)
        sums = torch.zeros(2 + 2 * size, dtype=torch.float64, device=features.device)
        total = features.new_zeros((), dtype=torch.float32)
        for index in language.unique().tolist():
            # Of one language: its positions, and its rows for its teacher.
            places = (language == index).nonzero()[:, 0]
            theirs = self._read(index, seen, inputs["positions"][places])
            ours = OutputLayer(features.index_select(0, places), weight, bias)
            share = self.teacher_weights()[index]
            ones = torch.ones(len(places), device=features.device) * each
            with torch.autocast(features.device.type, enabled=False), record_function(LOSS):
                found = live_distillation(
                    ours, theirs, gold[places], share * ones, (1 - share) * ones, temperature=self.temperature,
                    masked=torch.ones_like(places, dtype=torch.bool),
                )  # fmt: skip
            total = total + found.loss
            kd, mlm = found.kd.sum(), found.mlm.sum()
            sums[0], sums[1] = sums[0] + mlm, sums[1] + kd
            sums[2 + index] = share * kd + (1 - share) * mlm
            sums[2 + size + index] = len(places)
        if model.training:
            self.check(total)
            self._sums = sums if self._sums is None else self._sums + sums
        return (total, None) if return_outputs else total

    @torch.no_grad()
    def _read(self, index: int, inputs: dict[str, Tensor], positions: Tensor) -> OutputLayer:
        """A teacher's output layer with its features at positions [N] of the flattened batch; it sees its rows alone."""
        width = inputs["input_ids"].shape[1]
        rows, within = (positions // width).unique(return_inverse=True)
        of_teacher = {name: values.index_select(0, rows) for name, values in inputs.items()}
        with torch.autocast(positions.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = masked_features(self.teachers[index], of_teacher, within * width + positions % width)
        return OutputLayer(features.to(self.dtype), *self.layers[index])
