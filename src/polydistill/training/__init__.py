"""Training: the Trainer, its batches, and resuming."""

from polydistill.training.arguments import check_arguments, training_arguments
from polydistill.training.data import MaskedTexts, StoredExamples, TrainingExample, collate
from polydistill.training.run import EarlyStopping, train
from polydistill.training.sampler import LanguageSampler
from polydistill.training.trainer import DistillationTrainer

__all__ = [
    "DistillationTrainer",
    "EarlyStopping",
    "LanguageSampler",
    "MaskedTexts",
    "StoredExamples",
    "TrainingExample",
    "check_arguments",
    "collate",
    "train",
    "training_arguments",
]
