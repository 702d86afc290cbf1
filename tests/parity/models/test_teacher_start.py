"""Rows from teachers: against scikit-learn's decomposition and scipy's rotation."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group
from sklearn.decomposition import PCA

from polydistill.models.teacher_start import (
    MIN_ANCHORS,
    PieceRows,
    principal_rows,
    rotation_onto,
    teacher_rows,
)


def draw_rows(number, width, seed=0):
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((number, width)) * np.arange(1, width + 1) + 3).astype(np.float32)


def cosines(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def test_principal_rows_are_those_of_a_component_analysis() -> None:
    rows = draw_rows(200, 12)
    reduced = PCA(5).fit_transform(rows)
    np.testing.assert_allclose(cosines(principal_rows(rows, 5)), cosines(reduced), atol=1e-4)
    # The leading direction comes first: cutting columns keeps the largest variance.
    np.testing.assert_allclose(
        abs(principal_rows(rows, 5)[:, 0]), abs(reduced[:, 0]) / np.linalg.norm(reduced, axis=1), atol=1e-4
    )


def test_a_narrow_teacher_keeps_all_its_directions() -> None:
    rows = draw_rows(50, 4)
    wide = principal_rows(rows, 9)
    assert wide.shape == (50, 9)
    np.testing.assert_allclose(cosines(wide), cosines(rows - rows.mean(0)), atol=1e-4)


def test_the_rotation_is_that_of_scipy() -> None:
    source, target = draw_rows(80, 6), draw_rows(80, 6, seed=1)
    np.testing.assert_allclose(
        rotation_onto(source, target), orthogonal_procrustes(source, target)[0], atol=1e-4
    )


def test_a_teacher_is_turned_to_the_pieces_that_it_shares() -> None:
    """The second teacher has the first one's rows in another basis: all pieces come out in one space."""
    width, shared = 8, 2 * MIN_ANCHORS
    rows = draw_rows(3 * shared, width)
    turned = (rows @ ortho_group.rvs(width, random_state=0)).astype(np.float32)
    first = PieceRows(rows[: 2 * shared], np.arange(2 * shared))
    second = PieceRows(turned[shared:], np.arange(shared, 3 * shared))
    made = teacher_rows([first, second], 3 * shared, width, seed=0)
    # Each teacher is centred by its own mean: hence not equal.
    difference = np.abs(cosines(made) - cosines(principal_rows(rows, width)))
    assert difference.mean() < 0.05


def test_without_shared_pieces_every_teacher_keeps_its_own_shape() -> None:
    parts = [PieceRows(draw_rows(70, 10, seed), np.arange(70) + 70 * seed) for seed in range(2)]
    made = teacher_rows(parts, 150, 6, seed=3)
    for part in parts:
        np.testing.assert_allclose(cosines(made[part.ids]), cosines(principal_rows(part.rows, 6)), atol=1e-4)
    assert not made[140:].any()
    # Turned at random: the leading direction does not stay in one column.
    assert np.std(np.abs(made[:70]).mean(0)) < 0.5 * np.std(np.abs(principal_rows(parts[0].rows, 6)).mean(0))
    assert np.array_equal(made, teacher_rows(parts, 150, 6, seed=3))
    assert not np.array_equal(made, teacher_rows(parts, 150, 6, seed=4))


def test_a_frame_decides_where_rows_go() -> None:
    """Rows that are the frame's in another basis come back as the frame's, for pieces that it lacks too."""
    width, number = 6, 3 * MIN_ANCHORS
    frame = draw_rows(number, width)
    frame -= frame.mean(0)
    turned = (frame @ ortho_group.rvs(width, random_state=1)).astype(np.float32)
    unit = frame / np.linalg.norm(frame, axis=1, keepdims=True)
    lacking = unit.copy()
    lacking[-10:] = 0
    made = teacher_rows([PieceRows(turned, np.arange(number))], number, width, seed=0, frame=lacking)
    np.testing.assert_allclose(made, unit, atol=1e-3)
    few = np.zeros_like(unit)
    few[: MIN_ANCHORS - 1] = unit[: MIN_ANCHORS - 1]
    away = teacher_rows([PieceRows(turned, np.arange(number))], number, width, seed=0, frame=few)
    assert np.abs(away - unit).max() > 0.3


@pytest.mark.parametrize("width", [3, 8])
def test_a_piece_of_two_teachers_has_the_mean_direction(width) -> None:
    rows = [draw_rows(MIN_ANCHORS, 5, seed) for seed in range(2)]
    parts = [PieceRows(part, np.arange(MIN_ANCHORS)) for part in rows]
    made = teacher_rows(parts, MIN_ANCHORS, width, seed=0)
    first = teacher_rows(parts[:1], MIN_ANCHORS, width, seed=0)
    other = principal_rows(rows[1], width)
    other = other @ orthogonal_procrustes(other, first)[0]
    expected = first + other
    np.testing.assert_allclose(made, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4)
