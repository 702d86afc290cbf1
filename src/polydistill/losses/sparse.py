"""Cross-entropy of sparse targets, computed in chunks whose logits are never all in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class SparseLoss(NamedTuple):
    """What one pass over the output layer gives.

    loss       scalar: the sum over positions, in nats, to differentiate
    logprobs   [N, K] float32, detached: the student's log-probabilities of `ids`
    tail_loss  [N] float32, detached: -log of the student's probability of all pieces outside `top`
    """

    loss: Tensor
    logprobs: Tensor
    tail_loss: Tensor


def sparse_soft_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    target: Tensor,
    *,
    tail: Tensor | None = None,
    top: slice = slice(None),
    chunk_positions: int = 256,
) -> SparseLoss:
    """Cross-entropy in nats of a sparse target, summed over positions.

    features  [N, E]  output-layer inputs at masked positions
    weight    [V, E], bias [V] or None
    ids       [N, K]  student ids; a repeated id counts with the sum of its targets
    target    [N, K]  probabilities, each row summing to at most 1
    tail      [N]     probability of one more class that stands for every piece outside `ids[:, top]`

    Without a tail equal to -(target * log_softmax(features @ weight.T + bias).gather(1, ids)).sum(), without
    holding [N, V]. Gold and teacher labels are one target: MergeDistill, eq. 1-2 and L_ALL. Logits are
    products in the features' dtype; logsumexp, softmax and the loss are float32 (float64 stays float64).
    """
    loss, logprobs, tail_loss = _Sparse.apply(  # type: ignore[no-untyped-call]
        features, weight, bias, ids, target, tail, top, chunk_positions
    )
    return SparseLoss(loss, logprobs, tail_loss)


class _Sparse(torch.autograd.Function):
    """Gradients are made in the forward pass, chunk by chunk, while the chunk's softmax is at hand.

    The loss is one number, so the backward pass only scales them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        target: Tensor,
        tail: Tensor | None,
        top: slice,
        chunk_positions: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs = [tensor is not None and tensor.requires_grad for tensor in (features, weight, bias)]
        compute = torch.float64 if features.dtype == torch.float64 else torch.float32
        matrix = weight.to(features.dtype)
        loss = torch.zeros((), dtype=compute, device=features.device)
        logprobs = torch.empty(ids.shape, dtype=compute, device=features.device)
        tail_loss = torch.zeros(len(ids), dtype=compute, device=features.device)
        grad_features = torch.zeros_like(features) if needs[0] else None
        grad_weight = torch.zeros_like(weight) if needs[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs[2] else None
        for start in range(0, len(ids), chunk_positions):
            rows = slice(start, start + chunk_positions)
            chunk = features[rows]
            logits = (chunk @ matrix.t()).to(compute)
            if bias is not None:
                logits += bias.to(compute)
            chunk_ids, chunk_target = ids[rows], target[rows].to(compute)
            normaliser = logits.logsumexp(-1, keepdim=True)
            logprobs[rows] = logits.gather(1, chunk_ids) - normaliser
            loss -= (chunk_target * logprobs[rows]).sum()
            total = chunk_target.sum(-1, keepdim=True)
            outside = None
            if tail is not None:
                chunk_tail = tail[rows].to(compute).unsqueeze(-1)
                others = logits.scatter(1, chunk_ids[:, top], -torch.inf)
                outside = others.logsumexp(-1, keepdim=True)
                tail_loss[rows] = (normaliser - outside)[:, 0]
                # Where the ids are the whole vocabulary there is no tail to have a loss.
                has_tail = (chunk_tail > 0) & outside.isfinite()
                chunk_tail = torch.where(has_tail, chunk_tail, 0.0)
                loss += torch.where(has_tail, chunk_tail * (normaliser - outside), 0.0).sum()
                total = total + chunk_tail
            if any(needs):
                # d loss / d logits = softmax * sum(target) - target, and for the tail - tail * softmax within it
                gradient = logits.sub_(normaliser).exp_().mul_(total)
                gradient.scatter_add_(1, chunk_ids, -chunk_target)
                if outside is not None:
                    within = (others - outside).exp_().nan_to_num_(0.0)
                    gradient.sub_(within.mul_(chunk_tail))
                gradient = gradient.to(features.dtype)
                if grad_features is not None:
                    grad_features[rows] = gradient @ matrix
                if grad_weight is not None:
                    grad_weight.addmm_(gradient.t().to(weight.dtype), chunk.to(weight.dtype)) if (
                        features.dtype == weight.dtype
                    ) else grad_weight.add_(gradient.t() @ chunk)
                if grad_bias is not None:
                    grad_bias += gradient.sum(0, dtype=compute).to(grad_bias.dtype)
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        ctx.mark_non_differentiable(logprobs, tail_loss)
        return loss, logprobs, tail_loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        made = [None if tensor is None else tensor * scale.to(tensor.dtype) for tensor in ctx.saved_tensors]
        return (*made, None, None, None, None, None)
