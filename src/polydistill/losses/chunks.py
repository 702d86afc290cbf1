"""A pass through the output layer: logits in chunks, turned into gradients while they are in cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from polydistill.padding import pad_rows

# Vocabulary products in memory at once: larger chunks need fewer passes over the weight's gradient.
CHUNK_BYTES = 256 * 2**20
# Bytes of float32 logits that stay in a CPU's cache between two passes.
CACHE_BYTES = 2 * 2**20

# (products [n, V] of n rows, these rows among all, these rows in the chunk) → their gradient [n, V], or None.
Reader = Callable[[Tensor, slice, slice], Tensor | None]


class Gradients(NamedTuple):
    """A loss's gradients of features [N, E], weight [V, E] and bias [V]; None where none is needed."""

    features: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def scaled(self, scale: Tensor) -> Gradients:
        """The gradients times a number."""
        # On a CPU reading the number is free, and a pass over [V, E] is not.
        if scale.device.type == "cpu" and float(scale) == 1.0:
            return self
        return Gradients(*(None if tensor is None else tensor * scale.to(tensor.dtype) for tensor in self))


def pass_through(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    chunk_positions: int,
    open_chunk: Callable[[slice], Reader],
) -> Gradients:
    """Compute features @ weight.T chunk by chunk; a reader turns rows into gradients, summed here.

    features         [N, E]; weight [V, E]; bias [V] or None, used only for its gradient
    chunk_positions  rows whose products are computed at once; a reader gets as many as a cache holds
    open_chunk       returns the reader of a chunk's rows

    Matrix products take a whole chunk. Everything between them is bound by memory, so it takes a few rows at
    a time. The loss is a scalar, so the backward pass only scales these gradients.
    """
    compute = torch.float64 if features.dtype == torch.float64 else torch.float32
    needs = [tensor is not None and tensor.requires_grad for tensor in (features, weight, bias)]
    matrix = weight.detach().to(features.dtype)
    grad_features = torch.empty_like(features) if needs[0] else None
    grad_weight: Tensor | None = torch.zeros_like(weight) if needs[1] and not len(features) else None
    grad_bias = torch.zeros(len(weight), dtype=compute, device=features.device) if needs[2] else None
    block = rows_at_once(features.device, len(weight), compute)
    for start in range(0, len(features), chunk_positions):
        rows = slice(start, min(len(features), start + chunk_positions))
        chunk = pad_rows(features.detach()[rows])
        # Padding rows of zeros stay zero, and add nothing to any gradient.
        products = chunk @ matrix.t()
        read = open_chunk(rows)
        for first in range(rows.start, rows.stop, block):
            part = slice(first, min(rows.stop, first + block))
            within = slice(part.start - rows.start, part.stop - rows.start)
            gradient = read(products[within], part, within)
            if gradient is not None:
                if grad_bias is not None:
                    grad_bias += gradient.sum(0)
                # The logits are no longer needed: the gradient takes their memory.
                products[within] = gradient
        if grad_features is not None:
            grad_features[rows] = (products @ matrix)[: rows.stop - rows.start]
        if needs[1]:
            product = products.t() @ chunk
            grad_weight = product.to(weight.dtype) if grad_weight is None else grad_weight.add_(product)
    if grad_bias is not None and bias is not None:
        grad_bias = grad_bias.to(bias.dtype)
    return Gradients(grad_features, grad_weight, grad_bias)


def rows_at_once(device: torch.device, vocabulary_size: int, dtype: torch.dtype) -> int:
    """Rows of logits to process at once: on a CPU as many as its cache holds, elsewhere a chunk."""
    size = CACHE_BYTES if device.type == "cpu" else CHUNK_BYTES
    return max(1, size // (vocabulary_size * dtype.itemsize))
