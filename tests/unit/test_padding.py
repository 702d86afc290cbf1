"""Batches with different numbers of masked positions give matrix products of the same shapes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.losses.live import OutputLayer, live_distillation
from polydistill.losses.sparse import sparse_soft_cross_entropy
from polydistill.models.features import masked_features, output_layer
from polydistill.padding import ROWS_MULTIPLE, pad_rows


class Products(TorchDispatchMode):
    """Records the shapes of the products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("mm", "matmul")):
            self.shapes.add((str(func), *(tuple(a.shape) for a in args if isinstance(a, torch.Tensor))))
        return func(*args, **(kwargs or {}))


def bert() -> torch.nn.Module:
    return AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(
            "bert",
            vocab_size=90,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=40,
        )
    )


def shapes_of_a_step(number: int) -> set[tuple]:
    """The products of a step with that many masked positions, forward and backward, with stored and live
    teachers.
    """
    model, teacher = bert(), bert()
    inputs = {"input_ids": torch.full((4, 32), 7), "attention_mask": torch.ones(4, 32, dtype=torch.long)}
    positions, gold = torch.arange(number), torch.zeros(number, dtype=torch.long)
    with Products() as products:
        features = masked_features(model, inputs, positions)
        ours = OutputLayer(features, *output_layer(model))
        sparse = sparse_soft_cross_entropy(*ours, gold[:, None], torch.ones(number, 1)).loss
        with torch.no_grad():
            theirs = OutputLayer(masked_features(teacher, inputs, positions), *output_layer(teacher))
        each = torch.ones(number)
        live = live_distillation(ours, theirs, gold, each, each, temperature=1.0).loss
        (sparse + live).backward()
    assert len(features) == number
    return products.shapes


def test_numbers_of_masked_positions_share_their_products() -> None:
    first = shapes_of_a_step(2 * ROWS_MULTIPLE + 1)
    assert len(first) > 5
    assert shapes_of_a_step(2 * ROWS_MULTIPLE + 7) == first
    assert shapes_of_a_step(3 * ROWS_MULTIPLE) == first
    assert shapes_of_a_step(3 * ROWS_MULTIPLE + 1) != first


def test_filled_rows_are_zeros_behind() -> None:
    rows = torch.arange(1.0, 35.0).reshape(17, 2)
    more = pad_rows(rows)
    assert more.shape == (2 * ROWS_MULTIPLE, 2)
    assert torch.equal(more[:17], rows)
    assert not more[17:].any()
    assert pad_rows(rows[:ROWS_MULTIPLE]).shape == (ROWS_MULTIPLE, 2)
    assert pad_rows(rows[:0]).shape == (0, 2)
    assert pad_rows(torch.ones(3, dtype=torch.long)).shape == (ROWS_MULTIPLE,)
