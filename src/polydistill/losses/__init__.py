"""Losses over masked positions, as pure functions of tensors."""

from polydistill.losses.schedules import teacher_weight
from polydistill.losses.sparse import SparseLoss, sparse_soft_cross_entropy
from polydistill.losses.targets import soft_targets

__all__ = ["SparseLoss", "soft_targets", "sparse_soft_cross_entropy", "teacher_weight"]
