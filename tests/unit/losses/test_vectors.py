"""Losses between vectors beside hand computations, the least-squares map beside normal equations."""

import numpy as np
import pytest
import torch

from polydistill.losses.vectors import least_squares_map, vector_loss


def test_losses_are_those_of_a_hand_computation() -> None:
    vectors = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]])
    target = torch.tensor([[4.0, 3.0], [0.0, 5.0], [-1.0, 0.0]])
    # 24 / 25; orthogonal; opposite.
    torch.testing.assert_close(vector_loss(vectors, target, "cosine"), torch.tensor([0.04, 1.0, 2.0]))
    # (1 + 1) / 2; (1 + 25) / 2; 9 / 2.
    torch.testing.assert_close(vector_loss(vectors, target, "mse"), torch.tensor([1.0, 13.0, 4.5]))


def test_the_map_solves_the_normal_equations() -> None:
    draw = np.random.default_rng(0)
    source = draw.normal(size=(200, 5)).astype(np.float32)
    target = (source @ draw.normal(size=(5, 3)) + 2.0 + 0.1 * draw.normal(size=(200, 3))).astype(np.float32)
    weight, bias = least_squares_map(source, target)
    with_one = np.concatenate([source, np.ones((200, 1))], axis=1).astype(np.float64)
    solved = np.linalg.solve(with_one.T @ with_one, with_one.T @ target.astype(np.float64))
    np.testing.assert_allclose(weight, solved[:5].T, atol=1e-5)
    np.testing.assert_allclose(bias, solved[5], atol=1e-5)
    assert weight.shape == (3, 5)


def test_a_direction_that_only_rounding_has_gets_no_weight() -> None:
    """Rows of a layer normalisation sum to 0, up to rounding."""
    draw = np.random.default_rng(1)
    source = draw.normal(size=(300, 6))
    source -= source.mean(1, keepdims=True)
    source += 1e-7 * draw.normal(size=source.shape)
    target = draw.normal(size=(300, 2))
    weight, _ = least_squares_map(source.astype(np.float32), target.astype(np.float32))
    assert np.abs(weight).max() < 1
    # Without a weight along the direction of all ones, every row of the map sums to 0.
    np.testing.assert_allclose(weight.sum(1), 0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_than_unknowns_are_fitted_exactly(rows) -> None:
    draw = np.random.default_rng(2)
    source, target = draw.normal(size=(rows, 8)), draw.normal(size=(rows, 4))
    weight, bias = least_squares_map(source.astype(np.float32), target.astype(np.float32))
    np.testing.assert_allclose(source @ weight.T + bias, target, atol=1e-4)
