"""Losses over masked positions, and with a live teacher, as pure functions of tensors."""

from polydistill.losses.chunks import CHUNK_BYTES, rows_at_once
from polydistill.losses.live import LiveLoss, OutputLayer, cosine_loss, live_distillation, relation_loss
from polydistill.losses.schedules import teacher_weight
from polydistill.losses.sparse import SparseLoss, sparse_soft_cross_entropy
from polydistill.losses.targets import soft_targets

__all__ = [
    "CHUNK_BYTES", "LiveLoss", "OutputLayer", "SparseLoss", "cosine_loss", "live_distillation", "relation_loss",
    "rows_at_once", "soft_targets", "sparse_soft_cross_entropy", "teacher_weight",
]  # fmt: skip
