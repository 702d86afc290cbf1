"""Cross-entropy of sparse targets, in chunks, so that all logits are never in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from polydistill.losses.chunks import CHUNK_BYTES, Gradients, pass_through


class SparseLoss(NamedTuple):
    """The result of one pass over the output layer.

    loss       scalar, differentiable: the sum over positions, in nats
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

    features         [N, E] output-layer inputs at masked positions
    weight           [V, E], bias [V] or None
    ids              [N, K] student ids; a repeated id counts with the sum of its targets
    target           [N, K] each row sums to its weight: 1, or less with a tail or for a mean over positions
    tail             [N] probability of an extra class for all pieces outside `ids[:, top]`
    chunk_positions  rows of vocabulary products computed at once; by default as many as fit into CHUNK_BYTES

    Without a tail, equal to -(target * log_softmax(features @ weight.T + bias).gather(1, ids)).sum(), without
    holding [N, V]. Gold and teacher labels form one target: MergeDistill, eq. 1-2 and L_ALL. Logits are
    products in the features' dtype; logsumexp, softmax and the loss are float32 (float64 stays float64).
    """
    if chunk_positions is None:
        chunk_positions = max(1, CHUNK_BYTES // (len(weight) * features.element_size()))
    loss, logprobs, tail_loss = _Sparse.apply(  # type: ignore[no-untyped-call]
        features, weight, bias, ids, target, tail, top, chunk_positions
    )
    return SparseLoss(loss, logprobs, tail_loss)


class _Sparse(torch.autograd.Function):
    """Computes gradients in the forward pass, chunk by chunk, while the chunk's logits are in memory."""

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
        compute = torch.float64 if features.dtype == torch.float64 else torch.float32
        needed = any(tensor is not None and tensor.requires_grad for tensor in (features, weight, bias))
        targets = _Targets(ids, target.to(compute), None if tail is None else tail.to(compute), top)
        offset = None if bias is None else bias.detach().to(compute)
        loss = torch.zeros((), dtype=compute, device=features.device)
        logprobs = torch.empty(ids.shape, dtype=compute, device=features.device)
        tail_loss = torch.zeros(len(ids), dtype=compute, device=features.device)

        def read(products: Tensor, rows: slice, _: slice) -> Tensor | None:
            return _loss_rows(products, offset, targets, rows, loss, logprobs, tail_loss, needed)

        gradients = pass_through(
            features, weight, bias, chunk_positions=chunk_positions, open_chunk=lambda _: read
        )
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(logprobs, tail_loss)
        return loss, logprobs, tail_loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*Gradients(*ctx.saved_tensors).scaled(gradients[0]), None, None, None, None, None)


class _Targets(NamedTuple):
    """The sparse target of all positions, see `sparse_soft_cross_entropy`."""

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
    """Add the rows' loss to `loss`, write their log-probabilities, and return the gradient [n, V].

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
    # If the ids are the whole vocabulary, there is no tail and no loss of it.
    has_tail = (tail > 0) & outside.isfinite()
    tail = torch.where(has_tail, tail, 0.0)
    loss -= torch.where(has_tail, tail * outside, 0.0).sum()
    if not needs_gradient:
        return None
    # and for the tail: - tail * softmax within it
    gradient = log_softmax.exp_().mul_(total + tail).scatter_add_(1, ids, -target)
    return gradient.sub_((others - outside).exp_().nan_to_num_(0.0).mul_(tail))
