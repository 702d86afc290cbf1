"""Training: the Trainer, its batches, and resuming."""

from polydistill.processes import leader_first, leads, leave, num_processes, wait_for_all
from polydistill.tasks.training import fine_tune, steps_of
from polydistill.training.arguments import check as check_arguments
from polydistill.training.arguments import check_finetuning, portable, training_arguments
from polydistill.training.checkpoints import checkpoints_bytes, checkpoints_in, fault_of, last_checkpoint
from polydistill.training.data import (
    STEPS_VERSION,
    LanguageSampler,
    MaskedTexts,
    StepSize,
    StoredExamples,
    TrainingExample,
    choose_copies,
    collate,
    collate_parts,
    expected_size,
)
from polydistill.training.live import LiveTeacher, LiveTrainer
from polydistill.training.profile import WARM_UP_STEPS, StepProfiler
from polydistill.training.progress import clock
from polydistill.training.run import EarlyStopping, train
from polydistill.training.stored import StoredTrainer
from polydistill.training.teachers import TeachersTrainer
from polydistill.training.trainer import DistillationTrainer

__all__ = [
    "STEPS_VERSION",
    "WARM_UP_STEPS",
    "DistillationTrainer",
    "EarlyStopping",
    "LanguageSampler",
    "LiveTeacher",
    "LiveTrainer",
    "MaskedTexts",
    "StepProfiler",
    "StepSize",
    "StoredExamples",
    "StoredTrainer",
    "TeachersTrainer",
    "TrainingExample",
    "check_arguments",
    "check_finetuning",
    "checkpoints_bytes",
    "checkpoints_in",
    "choose_copies",
    "clock",
    "collate",
    "collate_parts",
    "expected_size",
    "fault_of",
    "fine_tune",
    "last_checkpoint",
    "leader_first",
    "leads",
    "leave",
    "num_processes",
    "portable",
    "steps_of",
    "train",
    "training_arguments",
    "wait_for_all",
]  # fmt: skip
