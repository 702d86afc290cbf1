"""Measures of sentence vectors beside hand computations."""

import numpy as np
import pytest

from polydistill.evaluation.sentences import cosines, rank_correlation, retrieval_accuracy


def test_cosines_of_pairs() -> None:
    first = np.array([[3, 4], [1, 0], [0, 0]], dtype=np.float32)
    second = np.array([[4, 3], [-2, 0], [1, 1]], dtype=np.float32)
    np.testing.assert_allclose(cosines(first, second), [0.96, -1.0, 0.0], atol=1e-12)


def test_retrieval_counts_nearest_neighbours_by_angle() -> None:
    source = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
    # By length the first would win everywhere; by angle rows 0 and 1 find themselves, and row 2 finds row 0.
    target = np.array([[100, 60], [0, 1], [-1, -1]], dtype=np.float32)
    assert retrieval_accuracy(source, target) == pytest.approx(2 / 3)
    # From the other side: 100, 60 is nearer to 1, 1 (0.970) than to 1, 0 (0.857).
    assert retrieval_accuracy(target, source) == pytest.approx(1 / 3)


def test_equal_neighbours_share_the_hit() -> None:
    ones = np.ones((4, 3), dtype=np.float32)
    assert retrieval_accuracy(ones, ones) == pytest.approx(1 / 4)
    source = np.array([[1, 0], [0, 1]], dtype=np.float32)
    twice = np.array([[2, 0], [2, 0]], dtype=np.float32)
    # Row 0 shares its hit with row 1; row 1 is as far from both.
    assert retrieval_accuracy(source, twice) == pytest.approx(0.5)


def test_rank_correlation_is_pearsons_of_ranks() -> None:
    angles = np.radians([10, 80, 40, 60, 40])
    first = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (5, 1))
    second = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    scores = np.array([5.0, 1.0, 2.0, 3.0, 4.0])
    # Ranks of the cosines, ties at their mean: 5, 1, 3.5, 2, 3.5.
    x, y = np.array([5, 1, 3.5, 2, 3.5]), np.array([5, 1, 2, 3, 4.0])
    x, y = x - x.mean(), y - y.mean()
    expected = (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())
    assert rank_correlation(first, second, scores) == pytest.approx(expected)
    assert rank_correlation(first, first, scores) is None
    assert rank_correlation(first, second, np.ones(5)) is None
