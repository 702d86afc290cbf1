"""Cross-entropy of sparse targets, computed in chunks whose logits are never all in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Products with the vocabulary held at once: the larger, the fewer passes over the weight's gradient.
CHUNK_BYTES = 256 * 2**20
# Logits in float32 that stay in a processor's cache between two passes over them.
CACHE_BYTES = 2 * 2**20


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
    chunk_positions: int | None = None,
) -> SparseLoss:
    """Cross-entropy in nats of a sparse target, summed over positions.

    features  [N, E]  output-layer inputs at masked positions
    weight    [V, E], bias [V] or None
    ids       [N, K]  student ids; a repeated id counts with the sum of its targets
    target    [N, K]  each row sums to its weight: 1, or less with a tail or for a mean over positions
    tail      [N]     probability of one more class that stands for every piece outside `ids[:, top]`
    chunk_positions   rows whose products with the vocabulary are made at once; by default as many as fit
                      into CHUNK_BYTES

    Without a tail equal to -(target * log_softmax(features @ weight.T + bias).gather(1, ids)).sum(), without
    holding [N, V]. Gold and teacher labels are one target: MergeDistill, eq. 1-2 and L_ALL. Logits are
    products in the features' dtype; logsumexp, softmax and the loss are float32 (float64 stays float64).
    """
    if chunk_positions is None:
        chunk_positions = max(1, CHUNK_BYTES // (len(weight) * features.element_size()))
    loss, logprobs, tail_loss = _Sparse.apply(  # type: ignore[no-untyped-call]
        features, weight, bias, ids, target, tail, top, chunk_positions
    )
    return SparseLoss(loss, logprobs, tail_loss)


class _Sparse(torch.autograd.Function):
    """Gradients are made in the forward pass, chunk by chunk, while the chunk's logits are at hand.

    The loss is one number, so the backward pass only scales them. Matrix products take a chunk at once;
    everything between them is memory traffic, so it goes through a few rows at a time, which stay in cache.
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
        matrix = weight.detach().to(features.dtype)
        targets = _Targets(ids, target.to(compute), None if tail is None else tail.to(compute), top)
        offset = None if bias is None else bias.detach().to(compute)
        loss = torch.zeros((), dtype=compute, device=features.device)
        logprobs = torch.empty(ids.shape, dtype=compute, device=features.device)
        tail_loss = torch.zeros(len(ids), dtype=compute, device=features.device)
        grad_features = torch.empty_like(features) if needs[0] else None
        grad_weight: Tensor | None = torch.zeros_like(weight) if needs[1] and not len(ids) else None
        grad_bias = torch.zeros(len(weight), dtype=compute, device=features.device) if needs[2] else None
        block = rows_at_once(features.device, len(weight), compute)
        for start in range(0, len(ids), chunk_positions):
            rows = slice(start, min(len(ids), start + chunk_positions))
            chunk = features.detach()[rows]
            products = chunk @ matrix.t()
            for first in range(rows.start, rows.stop, block):
                part = slice(first, min(rows.stop, first + block))
                within = slice(part.start - rows.start, part.stop - rows.start)
                gradient = _loss_rows(
                    products[within], offset, targets, part, loss, logprobs, tail_loss, any(needs)
                )
                if gradient is not None:
                    if grad_bias is not None:
                        grad_bias += gradient.sum(0)
                    # The logits are done with: their memory takes the gradient.
                    products[within] = gradient
            if grad_features is not None:
                torch.mm(products, matrix, out=grad_features[rows])
            if needs[1]:
                product = products.t() @ chunk
                grad_weight = product.to(weight.dtype) if grad_weight is None else grad_weight.add_(product)
        if grad_bias is not None and bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        ctx.mark_non_differentiable(logprobs, tail_loss)
        return loss, logprobs, tail_loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        # On a processor the look costs nothing, and a pass over [V, E] does.
        if scale.device.type == "cpu" and float(scale) == 1.0:
            return (*ctx.saved_tensors, None, None, None, None, None)
        made = [None if tensor is None else tensor * scale.to(tensor.dtype) for tensor in ctx.saved_tensors]
        return (*made, None, None, None, None, None)


class _Targets(NamedTuple):
    """The sparse target of all positions: see `sparse_soft_cross_entropy`."""

    ids: Tensor
    target: Tensor
    tail: Tensor | None
    top: slice


def _loss_rows(
    products: Tensor,
    bias: Tensor | None,
    targets: _Targets,
    rows: slice,
    loss: Tensor,
    logprobs: Tensor,
    tail_loss: Tensor,
    needs_gradient: bool,
) -> Tensor | None:
    """Add some rows' loss to `loss`, write their log-probabilities, and return their gradient [n, V].

    products  [n, V] features @ weight.T; loss, logprobs, tail_loss  of all positions, written in place
    """
    compute = logprobs.dtype
    logits = products.to(compute) if bias is None else products + bias
    log_softmax = torch.log_softmax(logits, -1)
    ids, target = targets.ids[rows], targets.target[rows]
    logprobs[rows] = log_softmax.gather(1, ids)
    loss -= (target * logprobs[rows]).sum()
    total = target.sum(-1, keepdim=True)
    if targets.tail is None:
        if not needs_gradient:
            return None
        # d loss / d logits = softmax * sum(target) - target
        return log_softmax.exp_().mul_(total).scatter_add_(1, ids, -target)
    tail = targets.tail[rows].unsqueeze(-1)
    others = log_softmax.scatter(1, ids[:, targets.top], -torch.inf)
    outside = others.logsumexp(-1, keepdim=True)
    tail_loss[rows] = -outside[:, 0]
    # Where the ids are the whole vocabulary there is no tail to have a loss.
    has_tail = (tail > 0) & outside.isfinite()
    tail = torch.where(has_tail, tail, 0.0)
    loss -= torch.where(has_tail, tail * outside, 0.0).sum()
    if not needs_gradient:
        return None
    # and for the tail: - tail * softmax within it
    gradient = log_softmax.exp_().mul_(total + tail).scatter_add_(1, ids, -target)
    return gradient.sub_((others - outside).exp_().nan_to_num_(0.0).mul_(tail))


def rows_at_once(device: torch.device, vocabulary_size: int, dtype: torch.dtype) -> int:
    """Rows of logits to go through at once: on a processor as many as its cache holds, elsewhere a chunk."""
    size = CACHE_BYTES if device.type == "cpu" else CHUNK_BYTES
    return max(1, size // (vocabulary_size * dtype.itemsize))
