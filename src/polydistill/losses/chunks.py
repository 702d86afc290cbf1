"""The way through the output layer: logits in chunks, read and turned into gradients while they are in cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from polydistill.padding import filled

# Products with the vocabulary held at once: the larger, the fewer passes over the weight's gradient.
CHUNK_BYTES = 256 * 2**20
# Logits in float32 that stay in a processor's cache between two passes over them.
CACHE_BYTES = 2 * 2**20

# (products [n, V] of some rows, these rows among all, the same among the chunk's) → their gradient [n, V], or None.
Reader = Callable[[Tensor, slice, slice], Tensor | None]


class Gradients(NamedTuple):
    """A loss's gradients by features [N, E], weight [V, E] and bias [V]; None for what needs none."""

    features: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def scaled(self, scale: Tensor) -> Gradients:
        """Times a number."""
        # On a processor the look costs nothing, and a pass over [V, E] does.
        if scale.device.type == "cpu" and float(scale) == 1.0:
            return self
        return Gradients(*(None if made is None else made * scale.to(made.dtype) for made in self))


def pass_through(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    chunk_positions: int,
    open_chunk: Callable[[slice], Reader],
) -> Gradients:
    """Make features @ weight.T chunk by chunk, have a reader turn the rows into gradients, and collect these.

    features         [N, E]; weight [V, E]; bias [V] or None, for its gradient alone
    chunk_positions  rows whose products are made at once; they are read as many at a time as a cache holds
    open_chunk       gives the reader of a chunk's rows

    Matrix products take a chunk at once; everything between them is memory traffic, so it goes through a few
    rows at a time. The loss is one number, so that a backward pass only has to scale what is collected here.
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
        chunk = filled(features.detach()[rows])
        # Rows of zeros behind the others stay so, and add nothing to any gradient.
        products = chunk @ matrix.t()
        read = open_chunk(rows)
        for first in range(rows.start, rows.stop, block):
            part = slice(first, min(rows.stop, first + block))
            within = slice(part.start - rows.start, part.stop - rows.start)
            gradient = read(products[within], part, within)
            if gradient is not None:
                if grad_bias is not None:
                    grad_bias += gradient.sum(0)
                # The logits are done with: their memory takes the gradient.
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
    """Rows of logits to go through at once: on a processor as many as its cache holds, elsewhere a chunk."""
    size = CACHE_BYTES if device.type == "cpu" else CHUNK_BYTES
    return max(1, size // (vocabulary_size * dtype.itemsize))
