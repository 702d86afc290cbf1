"""Losses with a live teacher: its predictions in chunks whose logits are never all in memory, its hidden states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from polydistill.losses.chunks import CHUNK_BYTES, Gradients, Reader, pass_through

# Stands for minus infinity in scores: its softmax is 0, and 0 times a difference of two such is 0.
NEVER = -1e9


class OutputLayer(NamedTuple):
    """What makes logits: features [N, E] at the chosen positions, weight [V, E], bias [V] or None."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None


class LiveLoss(NamedTuple):
    """What one pass over both output layers gives.

    loss  scalar: the weighted sum over positions, in nats, to differentiate
    kd    [N] float32, detached: temperature² · KL(teacher ‖ student)
    mlm   [N] float32, detached: cross-entropy of the text's token; 0 where its weight is 0
    """

    loss: Tensor
    kd: Tensor
    mlm: Tensor


def live_distillation(
    student: OutputLayer,
    teacher: OutputLayer,
    gold: Tensor,
    kd_weight: Tensor,
    mlm_weight: Tensor,
    *,
    temperature: float,
    masked: Tensor | None = None,
    chunk_positions: int | None = None,
) -> LiveLoss:
    """The teacher's predictions and the text's tokens as one loss, summed over positions.

    student, teacher  of one vocabulary; the widths E may differ. No gradient goes to the teacher.
    gold        [N] the text's tokens
    kd_weight   [N] weight of the teacher's predictions at each position
    mlm_weight  [N] weight of the text's token
    masked      [N] bool, where `mlm` is measured; by default where its weight is not 0
    chunk_positions  rows whose products with the vocabulary are made at once; by default as many as fit into
                     CHUNK_BYTES, of both models together

    Equal to Σₙ kd_weight · T² · KL(softmax(t/T) ‖ softmax(s/T)) + mlm_weight · CE(s, gold) with logits s, t
    (Hinton et al. 2015; Sanh et al. 2019; Eliquare 2022, L_distillation and L_mlm, whose L_distillation leaves out the
    teacher's entropy, which is no gradient), without holding [N, V] of either. Logits are products in the
    features' dtype; everything after them is float32 (float64 stays float64).
    """
    if masked is None:
        masked = mlm_weight != 0
    if chunk_positions is None:
        sizes = student.features.element_size() + teacher.features.element_size()
        chunk_positions = max(1, CHUNK_BYTES // (len(student.weight) * sizes))
    loss, kd, mlm = _Live.apply(  # type: ignore[no-untyped-call]
        *student, teacher, gold, kd_weight, mlm_weight, masked, temperature, chunk_positions
    )
    return LiveLoss(loss, kd, mlm)


class _Live(torch.autograd.Function):
    """Gradients are made in the forward pass, as in `losses.sparse`."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: OutputLayer,
        gold: Tensor,
        kd_weight: Tensor,
        mlm_weight: Tensor,
        masked: Tensor,
        temperature: float,
        chunk_positions: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        compute = torch.float64 if features.dtype == torch.float64 else torch.float32
        theirs = teacher.weight.detach().to(teacher.features.dtype)
        offset = None if bias is None else bias.detach().to(compute)
        their_offset = None if teacher.bias is None else teacher.bias.detach().to(compute)
        targets = _Targets(gold, kd_weight.to(compute), mlm_weight.to(compute), masked, temperature)
        kd = torch.zeros(len(gold), dtype=compute, device=features.device)
        mlm = torch.zeros_like(kd)

        def open_chunk(rows: slice) -> Reader:
            their_products = teacher.features.detach()[rows] @ theirs.t()

            def read(products: Tensor, part: slice, within: slice) -> Tensor:
                return _loss_rows(
                    _logits(products, offset, compute),
                    _logits(their_products[within], their_offset, compute),
                    targets, part, kd, mlm,
                )  # fmt: skip

            return read

        gradients = pass_through(
            features, weight, bias, chunk_positions=chunk_positions, open_chunk=open_chunk
        )
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(kd, mlm)
        return (targets.kd_weight * kd + targets.mlm_weight * mlm).sum(), kd, mlm

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 7
        return (*Gradients(*ctx.saved_tensors).scaled(gradients[0]), *nothing)


class _Targets(NamedTuple):
    """What all positions are to learn: see `live_distillation`."""

    gold: Tensor
    kd_weight: Tensor
    mlm_weight: Tensor
    masked: Tensor
    temperature: float


def _logits(products: Tensor, bias: Tensor | None, compute: torch.dtype) -> Tensor:
    return products.to(compute) if bias is None else products + bias


def _loss_rows(
    logits: Tensor, theirs: Tensor, targets: _Targets, rows: slice, kd: Tensor, mlm: Tensor
) -> Tensor:
    """Write some rows' losses into `kd` and `mlm` of all positions, and return their gradient [n, V].

    logits, theirs  [n, V] the student's and the teacher's
    """
    temperature = targets.temperature
    log_teacher = torch.log_softmax(theirs / temperature, -1)
    log_student = torch.log_softmax(logits / temperature, -1)
    teacher = log_teacher.exp()
    kd[rows] = temperature**2 * (teacher * log_teacher.sub_(log_student)).sum(-1)
    # d (T² KL) / d logits = T (softmax(s/T) - softmax(t/T))
    gradient = log_student.exp_().sub_(teacher).mul_(targets.kd_weight[rows, None] * temperature)
    where = targets.masked[rows].nonzero()[:, 0]
    if len(where):
        log_softmax = torch.log_softmax(logits[where], -1)
        gold, weight = targets.gold[rows][where, None], targets.mlm_weight[rows][where, None]
        mlm[rows.start + where] = -log_softmax.gather(1, gold)[:, 0]
        own = log_softmax.exp_().mul_(weight).scatter_add_(1, gold, -weight)
        gradient.index_add_(0, where, own)
    return gradient


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Σₙ 1 - cos(studentₙ, teacherₙ) of hidden states [N, H] each; Eliquare 2022, L_cosine, as DistilBERT has it."""
    target = torch.ones(len(student), device=student.device)
    return functional.cosine_embedding_loss(_exact(student), _exact(teacher), target, reduction="sum")


def relation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], attention_mask: Tensor, *, heads: int
) -> Tensor:
    """MiniLMv2's loss, summed over attended positions; a mean over relation heads (Wang et al. 2021, eq. 5-6).

    student, teacher  each [B, L, W]: queries, keys, values of a layer, all heads side by side; the widths may differ
    attention_mask    [B, L] 1 for tokens, 0 for padding
    heads             relation heads, which divides every width

    Of each of the three: Σ KL(softmax(t tᵀ/√dₜ) ‖ softmax(s sᵀ/√dₛ)) over queries, with d = W / heads. The paper
    takes a mean over each text's positions; here the caller divides by those of the whole step.
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
