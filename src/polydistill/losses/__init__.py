"""Losses at masked positions, and with a live teacher, as pure functions of tensors."""

from polydistill.losses.live import LiveLoss, cosine_loss, live_distillation, relation_loss
from polydistill.losses.schedules import scheduled_weight
from polydistill.losses.sparse import SparseLoss, sparse_soft_cross_entropy
from polydistill.losses.targets import soft_targets

__all__ = [
    "LiveLoss",
    "SparseLoss",
    "cosine_loss",
    "live_distillation",
    "relation_loss",
    "scheduled_weight",
    "soft_targets",
    "sparse_soft_cross_entropy",
]
