"""Losses with a live teacher: on its predictions, in chunks of logits, and on its hidden states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from polydistill.losses.chunks import CHUNK_BYTES, Gradients, Reader, pass_through
from polydistill.padding import pad_rows

# Replaces -inf in scores: its softmax is 0, and 0 times a difference of two such scores is 0, not NaN.
NEVER = -1e9


class OutputLayer(NamedTuple):
    """The inputs of logits: features [N, E] at the chosen positions, weight [V, E], bias [V] or None."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None


class LiveLoss(NamedTuple):
    """The result of one pass over both output layers.

    loss    scalar, differentiable: the weighted sum over positions, in nats
    kd      [N] float32, detached: temperature² · KL(teacher ‖ student)
    mlm     [N] float32, detached: cross-entropy of the text's token; 0 where it is not measured (`masked`)
    logits  [N] float32, detached: mean squared difference of centred logits; 0 without `logits_weight`
    """

    loss: Tensor
    kd: Tensor
    mlm: Tensor
    logits: Tensor


def live_distillation(
    student: OutputLayer,
    teacher: OutputLayer | Sequence[OutputLayer],
    gold: Tensor,
    kd_weight: Tensor,
    mlm_weight: Tensor,
    *,
    temperature: float,
    logits_weight: Tensor | None = None,
    masked: Tensor | None = None,
    chunk_positions: int | None = None,
) -> LiveLoss:
    """The teacher's predictions and the text's tokens as one loss, summed over positions.

    student, teacher  of one vocabulary; the widths E may differ. The teacher gets no gradient. With several
                      teachers, the first one's features are those of the first positions, and so on: together
                      [N, E].
    gold              [N] the text's tokens
    kd_weight         [N] weight of the teacher's predictions at each position
    mlm_weight        [N] weight of the text's token
    logits_weight     [N] weight of the squared difference of logits; None: it is not computed
    masked            [N] bool, where `mlm` is measured; by default where its weight is not 0
    chunk_positions   rows of vocabulary products computed at once; by default as many as fit into
                      CHUNK_BYTES, of both models together

    Equal to Σₙ kd_weight · T² · KL(softmax(t/T) ‖ softmax(s/T)) + mlm_weight · CE(s, gold) + logits_weight ·
    mean_v (d_v - mean_v d_v)² with logits s, t and d = s - t, without holding [N, V] of either (Hinton et al.
    2015; Sanh et al. 2019; Eliquare 2022, L_distillation and L_mlm; L_distillation omits the teacher's
    entropy, which has no gradient; Gurgurov et al. 2025 for logits, here centred, because a softmax does not
    change when all of them shift). The last is twice the limit of T² · KL for large T (Hinton et al. 2015,
    section 2.1). Logits are products in the features' dtype; everything after them is float32 (float64 stays
    float64).
    """
    # OutputLayer is itself a tuple.
    teachers = [teacher] if isinstance(teacher, OutputLayer) else list(teacher)
    if sum(len(layer.features) for layer in teachers) != len(gold):
        raise ValueError("the number of teachers' features is not the number of positions")
    if masked is None:
        masked = mlm_weight != 0
    if chunk_positions is None:
        sizes = student.features.element_size() + max(
            (layer.features.element_size() for layer in teachers), default=0
        )
        chunk_positions = max(1, CHUNK_BYTES // (len(student.weight) * sizes))
    weights = _Weights(kd_weight, mlm_weight, logits_weight)
    return LiveLoss(
        *_Live.apply(  # type: ignore[no-untyped-call]
            *student, teachers, gold, weights, masked, temperature, chunk_positions
        )
    )


class _Weights(NamedTuple):
    """Each [N]: see `live_distillation`."""

    kd: Tensor
    mlm: Tensor
    logits: Tensor | None


class _Live(torch.autograd.Function):
    """Computes gradients in the forward pass, as in `losses.sparse`."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teachers: list[OutputLayer],
        gold: Tensor,
        weights: _Weights,
        masked: Tensor,
        temperature: float,
        chunk_positions: int,
    ) -> tuple[Tensor, ...]:
        compute = torch.float64 if features.dtype == torch.float64 else torch.float32
        offset = None if bias is None else bias.detach().to(compute)
        starts = list(accumulate((len(layer.features) for layer in teachers), initial=0))
        segments = [
            _Segment(
                slice(*bounds),
                layer.features.detach(),
                layer.weight.detach().to(layer.features.dtype),
                None if layer.bias is None else layer.bias.detach().to(compute),
            )
            for bounds, layer in zip(pairwise(starts), teachers, strict=True)
        ]
        # The text's token counts only where it is masked.
        weights = _Weights(
            weights.kd.to(compute),
            torch.where(masked, weights.mlm, 0.0).to(compute),
            None if weights.logits is None else weights.logits.to(compute),
        )
        targets = _Targets(gold, weights, masked, temperature)
        nothing = torch.zeros(len(gold), dtype=compute, device=features.device)
        sums = _Sums(nothing, nothing.clone(), nothing.clone())

        def open_chunk(rows: slice) -> Reader:
            theirs = [part for segment in segments if (part := segment.products(rows)) is not None]

            def read(products: Tensor, part: slice, _: slice) -> Tensor:
                logits = [tensor for each in theirs if (tensor := each.logits(part, compute)) is not None]
                return _loss_rows(
                    _logits(products, offset, compute),
                    logits[0] if len(logits) == 1 else torch.cat(logits),
                    targets,
                    part,
                    sums,
                )

            return read

        gradients = pass_through(
            features, weight, bias, chunk_positions=chunk_positions, open_chunk=open_chunk
        )
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*sums)
        total = weights.kd * sums.kd + weights.mlm * sums.mlm
        if weights.logits is not None:
            total = total + weights.logits * sums.logits
        return (total.sum(), *sums)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 6
        return (*Gradients(*ctx.saved_tensors).scaled(gradients[0]), *nothing)


class _Segment(NamedTuple):
    """A teacher's range of positions, and its output layer."""

    rows: slice
    features: Tensor
    matrix: Tensor
    bias: Tensor | None

    def products(self, rows: slice) -> _Products | None:
        """Its products at `rows` of all positions; None if it has none of them."""
        mine = _common(self.rows, rows)
        if mine is None:
            return None
        within = slice(mine.start - self.rows.start, mine.stop - self.rows.start)
        return _Products(mine, pad_rows(self.features[within]) @ self.matrix.t(), self.bias)


class _Products(NamedTuple):
    """A teacher's products [n, V] at `rows` of all positions."""

    rows: slice
    values: Tensor
    bias: Tensor | None

    def logits(self, rows: slice, compute: torch.dtype) -> Tensor | None:
        """Its logits at `rows` of all positions; None if it has none of them."""
        mine = _common(self.rows, rows)
        if mine is None:
            return None
        within = slice(mine.start - self.rows.start, mine.stop - self.rows.start)
        return _logits(self.values[within], self.bias, compute)


def _common(rows: slice, other: slice) -> slice | None:
    start, stop = max(rows.start, other.start), min(rows.stop, other.stop)
    return slice(start, stop) if start < stop else None


class _Targets(NamedTuple):
    """Targets of all positions, see `live_distillation`."""

    gold: Tensor
    weights: _Weights
    masked: Tensor
    temperature: float


class _Sums(NamedTuple):
    """Each loss at every position [N], written chunk by chunk."""

    kd: Tensor
    mlm: Tensor
    logits: Tensor


def _logits(products: Tensor, bias: Tensor | None, compute: torch.dtype) -> Tensor:
    return products.to(compute) if bias is None else products + bias


def _loss_rows(logits: Tensor, theirs: Tensor, targets: _Targets, rows: slice, sums: _Sums) -> Tensor:
    """Write the rows' losses into the sums of all positions, and return the gradient [n, V].

    logits, theirs  [n, V] the student's and the teacher's
    """
    temperature = targets.temperature
    kd_weight, mlm_weight = targets.weights.kd[rows, None], targets.weights.mlm[rows, None]
    gold, masked = targets.gold[rows, None], targets.masked[rows]
    log_teacher = torch.log_softmax(theirs / temperature if temperature != 1 else theirs, -1)
    log_student = torch.log_softmax(logits / temperature if temperature != 1 else logits, -1)
    if temperature == 1:
        sums.mlm[rows] = torch.where(masked, -log_student.gather(1, gold)[:, 0], 0.0)
    elif len(measured := masked.nonzero()[:, 0]):
        some = logits[measured]
        sums.mlm[rows.start + measured] = some.logsumexp(-1) - some.gather(1, gold[measured])[:, 0]
    teacher = log_teacher.exp()
    sums.kd[rows] = temperature**2 * (teacher * log_teacher.sub_(log_student)).sum(-1)
    student = log_student.exp_()
    # d (T² KL) / d logits = T (softmax(s/T) - softmax(t/T)); d CE / d logits = softmax(s) - [gold]
    if temperature == 1:
        gradient = student.mul_(kd_weight + mlm_weight).sub_(teacher.mul_(kd_weight))
    else:
        gradient = student.sub_(teacher).mul_(kd_weight * temperature)
        where = (mlm_weight[:, 0] != 0).nonzero()[:, 0]
        if len(where):
            gradient.index_add_(0, where, torch.softmax(logits[where], -1).mul_(mlm_weight[where]))
    gradient.scatter_add_(1, gold, -mlm_weight)
    if targets.weights.logits is not None:
        # d mean (d - mean d)² / d logits = 2/V (d - mean d)
        difference = logits - theirs
        difference -= difference.mean(-1, keepdim=True)
        sums.logits[rows] = difference.square().mean(-1)
        gradient.add_(difference.mul_(targets.weights.logits[rows, None] * (2 / logits.shape[-1])))
    return gradient


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Σₙ 1 - cos(studentₙ, teacherₙ) of hidden states [N, H]; Eliquare 2022, L_cosine, as in DistilBERT."""
    target = torch.ones(len(student), device=student.device)
    return functional.cosine_embedding_loss(_exact(student), _exact(teacher), target, reduction="sum")


def relation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], attention_mask: Tensor, *, heads: int
) -> Tensor:
    """MiniLMv2's loss, summed over attended positions; a mean over relation heads (Wang et al. 2021, eq.
    5-6).

    student, teacher  each [B, L, W]: a layer's queries, keys, values, heads concatenated; widths may differ
    attention_mask    [B, L] 1 for tokens, 0 for padding
    heads             number of relation heads, which divides every width

    For each of the three: Σ KL(softmax(t tᵀ/√dₜ) ‖ softmax(s sᵀ/√dₛ)) over queries, with d = W / heads. The
    paper takes a mean over each text's positions; here the caller divides by the positions of the whole step.
    """
    total = torch.zeros((), dtype=_exact(student[0]).dtype, device=student[0].device)
    for ours, theirs in zip(student, teacher, strict=True):
        log_student = _relations(ours, attention_mask, heads)
        log_teacher = _relations(theirs.detach(), attention_mask, heads)
        divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
        total = total + (divergence.mean(1) * attention_mask).sum()
    return total


def _relations(states: Tensor, attention_mask: Tensor, heads: int) -> Tensor:
    """[B, heads, L, L] log-softmax of the scaled products of a text's states with each other."""
    size, length, width = states.shape
    split = _exact(states).view(size, length, heads, width // heads).transpose(1, 2)
    scores = split @ split.transpose(2, 3) / math.sqrt(width // heads)
    return torch.log_softmax(scores.masked_fill(attention_mask[:, None, None, :] == 0, NEVER), -1)


def _exact(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
