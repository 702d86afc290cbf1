"""A live teacher and its losses: KD, MLM, logits, hidden states' cosine, and relations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from polydistill.config.extract import Losses
from polydistill.errors import ModelError
from polydistill.losses.live import OutputLayer, cosine_loss, live_distillation, relation_loss
from polydistill.losses.sparse import sparse_soft_cross_entropy
from polydistill.models.features import (
    features_and_states,
    layer_list,
    output_layer,
    queries_keys_values,
    unwrapped,
)
from polydistill.training.objectives import LOSSES, Counts, Head, Progress, changing_weights, loss_weights
from polydistill.training.profile import FORWARD, LOSS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LiveTeacher:
    """kd * KD + mlm * MLM + cosine + relation + logits, with a teacher that runs beside its student (Eliquare
    2022, eq. 4).

    Each loss is a sum over its positions (KD and logits over attended or masked tokens, MLM over masked ones,
    cosine and relation over attended ones), divided by their mean number in a step. The teacher has no
    gradients.

    model       loaded, with the student's vocabulary
    losses      their weights and schedules
    dtype       of its matrix products (by autocast)
    dimensions  [H'] those of its residual stream that a narrower student has kept; None for a student of its
                width. The cosine is of these.
    """

    def __init__(
        self, model: PreTrainedModel, losses: Losses, dtype: torch.dtype, dimensions: Tensor | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.losses, self.dtype, self.dimensions = losses, dtype, dimensions
        # Cast once, not once per step: autocast caches no copy of weights without gradients.
        weight, self.bias = output_layer(model)
        self.weight = weight.detach().to(dtype)
        self.relation_heads = losses.relation_heads or model.config.num_attention_heads

    def to(self, device: torch.device) -> None:
        """Move the teacher."""
        self.model.to(device)
        self.dimensions = None if self.dimensions is None else self.dimensions.to(device)
        self.weight = self.weight.to(device)
        self.bias = output_layer(self.model)[1]

    @torch.no_grad()
    def read(
        self, inputs: dict[str, Tensor], positions: Tensor
    ) -> tuple[OutputLayer, Tensor | None, list[Tensor]]:
        """(output layer with features at positions, last hidden states [B, L, H'], Q, K and V)."""
        with torch.autocast(positions.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features, states, relations = read_model(
                self.model, inputs, positions, relations=self.losses.relation.highest > 0
            )
        if states is not None and self.dimensions is not None:
            states = states.index_select(-1, self.dimensions)
        return OutputLayer(features.to(self.dtype), self.weight, self.bias), states, relations

    def __call__(
        self, model: nn.Module, head: Head, batch: Mapping[str, Tensor], counts: Counts, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        losses, weights = self.losses, loss_weights(self.losses, progress)
        seen = {name: batch[name] for name in ("input_ids", "attention_mask")}
        attended = seen["attention_mask"].flatten().nonzero()[:, 0]
        predicted = losses.kd.highest > 0 or losses.logits.highest > 0
        everywhere = predicted and losses.positions == "attended"
        chosen = attended if everywhere else batch["positions"]
        with record_function(FORWARD):
            features, states, relations = read_model(
                model, seen, chosen, relations=losses.relation.highest > 0
            )
            theirs = their_states = None
            their_relations: list[Tensor] = []
            if predicted or losses.cosine.highest or losses.relation.highest:
                theirs, their_states, their_relations = self.read(seen, chosen)
        sums = torch.zeros(len(LOSSES), dtype=torch.float64, device=features.device)
        with torch.autocast(features.device.type, enabled=False), record_function(LOSS):
            where = counts.attended if everywhere else counts.masked
            share = {
                "kd": weights["kd"] / where,
                "mlm": weights["mlm"] / counts.masked,
                "logits": weights["logits"] / where,
            }
            total, sums[0], sums[1], sums[4] = self._predictions(
                OutputLayer(features, *head), theirs, batch, chosen, share, predicted=predicted
            )
            if losses.cosine.highest:
                cosine = cosine_loss(*(_at(hidden, attended) for hidden in (states, their_states)))
                total, sums[2] = total + weights["cosine"] / counts.attended * cosine, cosine.detach()
            if losses.relation.highest:
                relation = relation_loss(
                    relations, their_relations, seen["attention_mask"], heads=self.relation_heads
                )
                total, sums[3] = total + weights["relation"] / counts.attended * relation, relation.detach()
        numbers = [len(chosen), len(batch["positions"]), len(attended), len(attended), len(chosen)]
        sums = torch.cat([sums, torch.tensor(numbers, dtype=torch.float64, device=sums.device)])
        return total * counts.processes, sums

    def _predictions(
        self,
        ours: OutputLayer,
        theirs: OutputLayer | None,
        batch: Mapping[str, Tensor],
        chosen: Tensor,
        share: dict[str, float],
        *,
        predicted: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(weighted sum of KD, MLM and logits, sum of each), the sums detached.

        share  weight of a position in each
        """
        positions, gold = batch["positions"], batch["ids"][:, 0]
        if not predicted or theirs is None:
            target = torch.full((len(gold), 1), 1.0, device=gold.device) * share["mlm"]
            result = sparse_soft_cross_entropy(*ours, gold[:, None], target)
            return result.loss, torch.zeros(()), -result.logprobs.sum(), torch.zeros(())
        # Which of the chosen positions are masked.
        golden = batch["input_ids"].flatten().clone()
        golden[positions] = gold
        masked = torch.zeros(len(golden), dtype=torch.bool, device=gold.device)
        masked[positions] = True
        masked = masked[chosen]
        each = torch.ones(len(chosen), device=gold.device)
        made = live_distillation(
            ours,
            theirs,
            golden[chosen],
            each * share["kd"],
            masked * share["mlm"],
            temperature=self.losses.temperature,
            logits_weight=each * share["logits"] if self.losses.logits.highest else None,
            masked=masked,
        )
        return made.loss, made.kd.sum(), made.mlm.sum(), made.logits.sum()

    def means(self, sums: Sequence[float], progress: Progress) -> dict[str, float]:
        """Each loss with a weight, and MLM; weights that change."""
        means = {
            f"{name}_loss": round(total / max(1.0, count), 5)
            for name, total, count in zip(LOSSES, sums[: len(LOSSES)], sums[len(LOSSES) :], strict=True)
            if getattr(self.losses, name).highest or name == "mlm"
        }
        return means | changing_weights(self.losses, progress)


def read_model(
    model: nn.Module, inputs: dict[str, Tensor], positions: Tensor, *, relations: bool
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """(features [N, E] at positions, last hidden states [B, L, H], the last layer's Q, K, V if asked)."""
    with ExitStack() as stack:
        taken: list[Tensor] = []
        if relations:
            taken = stack.enter_context(queries_keys_values(model, layer_list(unwrapped(model))))
        features, states = features_and_states(model, inputs, positions)
    return features, states, taken


def _at(states: Tensor | None, positions: Tensor) -> Tensor:
    """[N, H] hidden states at positions of the flattened batch."""
    if states is None:
        raise ModelError(
            "losses.cosine", None, "the encoder's output is not one vector per token", "set it to 0"
        )
    return states.flatten(0, 1).index_select(0, positions)
