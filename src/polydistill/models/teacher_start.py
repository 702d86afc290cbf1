"""Embedding rows of a student of any width from its teachers' rows.

A teacher's rows are brought to the student's width by a principal component analysis, as OFA factorises them
(Liu et al. 2024), and turned by the rotation that agrees best with a common frame (Procrustes; Schönemann
1966): rows from the text's co-occurrences, or those of the teachers before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# A rotation is fitted on pieces that both sides know; on fewer it would be noise.
MIN_ANCHORS = 64

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PieceRows:
    """A teacher's embedding rows of its ordinary pieces.

    rows  [n, d] the rows
    ids   [n] the student's ids of the pieces
    """

    rows: Rows
    ids: npt.NDArray[np.int64]


def principal_rows(rows: Rows, width: int) -> Rows:
    """[n, width] rows around their mean in their `width` directions of largest variance, of unit length.

    Fewer columns than `width` are followed by columns of zeros.
    """
    centred = rows - rows.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    reduced = centred @ directions[:, ::-1][:, :width]
    reduced /= np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), 1e-9)
    return np.pad(reduced, [(0, 0), (0, width - reduced.shape[1])]).astype(np.float32)


def rotation_onto(source: Rows, target: Rows) -> Rows:
    """[d, d] the orthogonal matrix Q with the smallest ||source @ Q - target||."""
    left, _, right = np.linalg.svd(source.T @ target)
    return np.asarray(left @ right, dtype=np.float32)


def teacher_rows(
    teachers: Iterable[PieceRows], size: int, width: int, *, seed: int, frame: Rows | None = None
) -> Rows:
    """[size, width] rows of unit length from teachers' rows, 0 for pieces that no teacher has.

    frame  [size, width] rows that the teachers' are turned to, 0 for pieces that it lacks. Without it the
           first teacher is turned at random, so that leading directions spread over all columns, and each
           other to the teachers before it
    A piece of several teachers has the sum of their rows. A teacher that shares fewer than MIN_ANCHORS pieces
    with the frame is turned at random.
    """
    total = np.zeros((size, width), dtype=np.float32)
    draw = np.random.default_rng([seed, 4])
    for teacher in teachers:
        rows = principal_rows(teacher.rows, width)
        target = (total if frame is None else frame)[teacher.ids]
        known = np.abs(target).max(axis=1) > 0
        if int(known.sum()) >= MIN_ANCHORS:
            rotation = rotation_onto(rows[known], target[known])
        else:
            rotation = np.linalg.qr(draw.standard_normal((width, width)))[0].astype(np.float32)
        total[teacher.ids] += rows @ rotation
    return unit_rows(total)


def unit_rows(rows: Rows) -> Rows:
    """[n, width] rows scaled to unit length; a row of zeros stays."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), dtype=np.float32)
