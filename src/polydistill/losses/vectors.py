"""Losses between vectors of sentences, and the linear map that fits one kind of vector to another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

Rows = npt.NDArray[np.float32]
FLAT = 1e-3


def vector_loss(vectors: Tensor, target: Tensor, loss: str) -> Tensor:
    """[B] the loss of each sentence.

    vectors, target  [B, D] the student's and the teacher's
    loss             `cosine`: 1 - cosine; `mse`: mean over dimensions of the squared difference (Reimers and
                     Gurevych 2020, equation 1, as sentence-transformers averages it)
    """
    if loss == "mse":
        return (vectors - target).square().mean(-1)
    return 1 - F.cosine_similarity(vectors, target, dim=-1)


def least_squares_map(source: Rows, target: Rows) -> tuple[Rows, Rows]:
    """([D, H] weight, [D] bias) of the affine map with the smallest ||source @ weight.T + bias - target||².

    source  [N, H]; target  [N, D]
    Closed form, in float64, by the directions of `source` whose spread is more than FLAT of the largest;
    among the maps that fit equally well it is the one of smallest weights. Without that limit the map's
    largest weights would be rounding: the output of a layer normalisation has no spread in one direction.
    """
    x, y = source.astype(np.float64), target.astype(np.float64)
    # Centred, the bias is no unknown of the system.
    x_mean, y_mean = x.mean(0), y.mean(0)
    weight, *_ = np.linalg.lstsq(x - x_mean, y - y_mean, rcond=FLAT)
    bias = y_mean - x_mean @ weight
    return weight.T.astype(np.float32), bias.astype(np.float32)
