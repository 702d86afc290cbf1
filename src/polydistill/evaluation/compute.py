"""Floating-point operations of training and of scoring, from a model's sizes and what it read.

Matrix products alone, two operations for a multiplication and its addition: 6 N D for training on D tokens
and 2 N D for a forward pass (Kaplan et al. 2020, section 2.1), with the products of attention, 12 and 4 times
layers x width x length for a token (Chowdhery et al. 2022, appendix B), and the output layer at predicted
positions alone, which is where it is computed here. N has no embedding tables, which are looked up.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from polydistill.models.load import model_config

# A backward pass has two products for each of the forward pass.
TRAINING = 3
# Weights of an MLM head, by the beginnings of their names: they see predicted positions alone.
HEADS = ("cls.", "lm_head.", "vocab_transform.", "head.", "generator_", "predictions.", "mlm_head.")
TABLES = ("position_embeddings", "token_type_embeddings")
UNUSED = ("pooler", "classifier")


class Sizes(NamedTuple):
    """What a token costs.

    matrices   elements of the matrices that every token passes
    attention  layers x width
    output     elements of the matrices that predicted positions pass, the output layer among them
    """

    matrices: int
    attention: int
    output: int


def forward_operations(sizes: Sizes, tokens: float, length: float, predicted: float) -> float:
    """Operations of a forward pass.

    tokens     read, padding included
    length     of a sequence in tokens, on average
    predicted  positions
    """
    return (
        2.0 * sizes.matrices * tokens
        + 4.0 * sizes.attention * length * tokens
        + 2.0 * sizes.output * predicted
    )


def training_operations(sizes: Sizes, tokens: float, length: float, predicted: float) -> float:
    """Operations of forward and backward passes; see `forward_operations`."""
    return TRAINING * forward_operations(sizes, tokens, length, predicted)


def sizes_of(folder: Path) -> Sizes | None:
    """The sizes of a model in a local folder; None without safetensors files."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    if not shapes:
        return None
    config = model_config(str(folder))
    matrices = output = table = 0
    for name, shape in shapes.items():
        if len(shape) != 2 or any(part in name for part in (*TABLES, *UNUSED)):
            continue
        size = shape[0] * shape[1]
        if shape[0] == config.vocab_size:
            # The embedding table, or the output layer, which are often one.
            table = max(table, size)
        elif name.startswith(HEADS):
            output += size
        elif "albert_layer_groups" in name:
            # Layers share these weights, and pass them one after the other.
            matrices += size * config.num_hidden_layers // config.num_hidden_groups
        else:
            matrices += size
    return Sizes(matrices, config.num_hidden_layers * config.hidden_size, output + table)
