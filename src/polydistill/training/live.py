"""Training with a live teacher: it sees the same batch, and the student learns from what it predicts and holds."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from polydistill.config.extract import Losses, LossWeight
from polydistill.errors import ModelError
from polydistill.losses.live import OutputLayer, cosine_loss, live_distillation, relation_loss
from polydistill.losses.schedules import teacher_weight
from polydistill.losses.sparse import sparse_soft_cross_entropy
from polydistill.models.extract import layer_list
from polydistill.models.features import features_and_states, output_layer, queries_keys_values
from polydistill.training.profile import FORWARD, LOSS
from polydistill.training.trainer import DistillationTrainer

NAMES = ("kd", "mlm", "cosine", "relation")


def loss_weights(losses: Losses, trainer: DistillationTrainer) -> dict[str, float]:
    """Each loss's weight at the trainer's step."""
    progress = min(1.0, trainer.state.global_step / max(1, trainer.state.max_steps - 1))
    return {name: weight_at(getattr(losses, name), progress) for name in NAMES}


class LiveTeacher:
    """A teacher that runs beside its student, without gradients.

    model   loaded, with the student's vocabulary; it goes to the student's device
    losses  what is learned from it
    dtype   what its matrices are multiplied in (by autocast)
    """

    def __init__(self, model: Any, losses: Losses, dtype: torch.dtype) -> None:
        self.model = model.eval().requires_grad_(False)
        self.losses, self.dtype = losses, dtype
        # In layers of its own precision once, not once a step: autocast keeps no copy of what has no gradient.
        weight, self.bias = output_layer(model)
        self.weight = weight.detach().to(dtype)
        self.relation_heads = losses.relation_heads or model.config.num_attention_heads

    def to(self, device: torch.device) -> LiveTeacher:
        """Move it."""
        self.model.to(device)
        self.weight = self.weight.to(device)
        self.bias = output_layer(self.model)[1]
        return self

    @torch.no_grad()
    def read(
        self, inputs: dict[str, Tensor], positions: Tensor
    ) -> tuple[OutputLayer, Tensor | None, list[Tensor]]:
        """(its output layer with features at positions, last hidden states [B, L, H], queries, keys and values)."""
        with torch.autocast(positions.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features, states, relations = run(
                self.model, inputs, positions, relations=self.losses.relation.highest > 0
            )
        return OutputLayer(features.to(self.dtype), self.weight, self.bias), states, relations


def run(
    model: Any, inputs: dict[str, Tensor], positions: Tensor, *, relations: bool
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """(output layer's features [N, E] at positions, last hidden states [B, L, H], the last layer's Q, K, V if asked)."""
    with ExitStack() as stack:
        taken: list[Tensor] = []
        if relations:
            inner = model if hasattr(model, "get_output_embeddings") else model.module
            taken = stack.enter_context(queries_keys_values(model, layer_list(inner)))
        features, states = features_and_states(model, inputs, positions)
    return features, states, taken


class LiveTrainer(DistillationTrainer):
    """DistillationTrainer whose teacher is live: kd · KD + mlm · MLM + cosine + relation (Eliquare 2022, eq. 4).

    Each loss is a sum over the positions that it sees (KD over attended or masked tokens, MLM over masked ones, cosine
    and relation over attended ones), divided by how many of them a step has on average.
    """

    def __init__(self, *, teacher: LiveTeacher, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.teacher = teacher.to(self.args.device)

    def weights(self) -> dict[str, float]:
        """Each loss's weight at this step."""
        return loss_weights(self.teacher.losses, self)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a part of a micro-batch, each kind divided by its positions of a whole step."""
        losses, weights = self.teacher.losses, self.weights()
        bare = self.accelerator.unwrap_model(model)
        seen = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        attended = seen["attention_mask"].flatten().nonzero()[:, 0]
        with_kd = losses.kd.highest > 0
        everywhere = with_kd and losses.positions == "attended"
        chosen = attended if everywhere else inputs["positions"]
        with record_function(FORWARD):
            features, states, relations = run(
                bare if bare is model else model, seen, chosen, relations=losses.relation.highest > 0
            )
            theirs = their_states = None
            their_relations: list[Tensor] = []
            if with_kd or losses.cosine.highest or losses.relation.highest:
                theirs, their_states, their_relations = self.teacher.read(seen, chosen)
        num_masked, num_attended = self.step_size
        sums = torch.zeros(len(NAMES), dtype=torch.float64, device=features.device)
        with torch.autocast(features.device.type, enabled=False), record_function(LOSS):
            ours = OutputLayer(features, *output_layer(bare))
            share = {"kd": weights["kd"] / (num_attended if everywhere else num_masked),
                     "mlm": weights["mlm"] / num_masked}  # fmt: skip
            total, sums[0], sums[1] = self._predictions(ours, theirs, inputs, chosen, share, with_kd=with_kd)
            if losses.cosine.highest:
                found = cosine_loss(*(_at(one, attended) for one in (states, their_states)))
                total, sums[2] = total + weights["cosine"] / num_attended * found, found.detach()
            if losses.relation.highest:
                found = relation_loss(
                    relations, their_relations, seen["attention_mask"], heads=self.teacher.relation_heads
                )
                total, sums[3] = total + weights["relation"] / num_attended * found, found.detach()
        # Data parallelism averages gradients over processes; a step is of all of them.
        total = total * self.accelerator.num_processes
        self.check(total)
        counts = [len(chosen), len(inputs["positions"]), len(attended), len(attended)]
        sums = torch.cat([sums, torch.tensor(counts, dtype=torch.float64, device=sums.device)])
        self._sums = sums if self._sums is None else self._sums + sums
        return (total, None) if return_outputs else total

    def _predictions(
        self,
        ours: OutputLayer,
        theirs: OutputLayer | None,
        inputs: dict[str, Tensor],
        chosen: Tensor,
        share: dict[str, Any],
        *,
        with_kd: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(KD and MLM, weighted; the sums of KD and of MLM, detached).

        share  weight of one position in each
        """
        positions, gold = inputs["positions"], inputs["ids"][:, 0]
        if not with_kd or theirs is None:
            target = torch.full((len(gold), 1), 1.0, device=gold.device) * share["mlm"]
            result = sparse_soft_cross_entropy(*ours, gold[:, None], target)
            return result.loss, torch.zeros(()), -result.logprobs.sum()
        # Where text is masked, among the positions that are chosen.
        golden = inputs["input_ids"].flatten().clone()
        golden[positions] = gold
        masked = torch.zeros(len(golden), dtype=torch.bool, device=gold.device)
        masked[positions] = True
        masked = masked[chosen]
        found = live_distillation(
            ours, theirs, golden[chosen], torch.ones(len(chosen), device=gold.device) * share["kd"],
            masked * share["mlm"], temperature=self.teacher.losses.temperature, masked=masked,
        )  # fmt: skip
        return found.loss, found.kd.sum(), found.mlm.sum()

    def _means(self, sums: list[float]) -> dict[str, float]:
        means = {}
        for name, total, count, weight in zip(
            NAMES, sums[: len(NAMES)], sums[len(NAMES) :], self.weights().values(), strict=True
        ):
            settings = getattr(self.teacher.losses, name)
            if settings.highest or name == "mlm":
                means[f"{name}_loss"] = round(total / max(1.0, count), 5)
            if settings.schedule != "constant":
                means[f"{name}_weight"] = round(weight, 5)
        return means


def weight_at(weight: LossWeight, progress: float) -> float:
    """A loss's weight at a share of the training's steps."""
    last = weight.first if weight.last is None else weight.last
    return teacher_weight(progress, first=weight.first, last=last, schedule=weight.schedule)


def _at(states: Tensor | None, positions: Tensor) -> Tensor:
    """[N, H] hidden states at positions of the flattened batch."""
    if states is None:
        raise ModelError(
            "losses.cosine", None, "the encoder's output is not a vector for each token", "set it to 0"
        )
    return states.flatten(0, 1).index_select(0, positions)
