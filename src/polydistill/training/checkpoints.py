"""Checkpoints: which are complete, and whether training ended at one."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel, TrainerState

from polydistill.disk import bytes_below, hash_file, read_record, write_json
from polydistill.errors import RunFolderError
from polydistill.training.arguments import Arguments

COMPLETE = "complete.json"


def checkpoints_bytes(model: PreTrainedModel, arguments: Arguments, folder: Path) -> int:
    """Estimated bytes of the checkpoints plus the final model.

    arguments  of TrainingArguments, checked
    folder     of the checkpoints, perhaps of an interrupted run
    """
    weights: int = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    moments = 2 if "adam" in str(arguments.get("optim", "adamw")) else 1
    steps, every = arguments.get("max_steps") or 0, arguments.get("save_steps", 1)
    if arguments.get("save_strategy") == "no":
        return weights
    if (folder / f"checkpoint-{steps}").is_dir():
        return bytes_below(folder) + weights
    saved = math.ceil(1 / every if every < 1 else steps / every) if steps > 0 else math.inf
    # One more exists while it is being written.
    kept = min(saved, int(arguments.get("save_total_limit", 2)) + 1)
    return weights * max((1 + moments) * int(kept), 1 + (1 + moments) * int(min(kept, 2)))


def mark_complete(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint's files last: a checkpoint without them is incomplete."""
    write_json(
        checkpoint / COMPLETE,
        {name: hash_file(checkpoint / name) for name in _files(checkpoint)},
        sealed=True,
    )


def finished_state(checkpoint: Path | None, *, total: int, patience: int) -> TrainerState | None:
    """The state of a checkpoint at which training ended, after `total` steps or by early stopping; else None.

    On resuming, Trainer itself forgets that it stopped early, and would continue.
    """
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    # Of whichever callback counts: its name differs between teachers and fine-tuning.
    counted = [
        callback.get("attributes", {}).get("early_stopping_patience_counter", 0)
        for callback in state.stateful_callbacks.values()
        if isinstance(callback, dict)
    ]
    stopped = 0 < patience <= max(counted, default=0)
    return state if stopped or state.global_step >= total else None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder; skips incomplete and damaged ones."""
    return next(
        (path for path in checkpoints_in(folder) if (path / COMPLETE).is_file() and not fault_of(path)), None
    )


def checkpoints_in(folder: Path) -> list[Path]:
    """All checkpoints in a folder, newest first, incomplete ones included."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    # No training writes a step number that Python cannot parse.
    checkpoints = [
        path for path, step in steps.items() if step.isascii() and step.isdigit() and len(step) < 20
    ]
    return sorted(checkpoints, key=lambda path: -int(steps[path]))


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a completely written checkpoint, in words; None if it is intact."""
    checksums = read_record(checkpoint / COMPLETE)
    if not checksums:
        return f"its {COMPLETE} is damaged"
    # An unlisted file would be loaded too, and a short list is not the one that was written.
    present = _files(checkpoint)
    for name in sorted(checksums.keys() | set(present)):
        if name not in present:
            return f"its file {name} is missing"
        if name not in checksums:
            return f"its file {name} was not written with it"
        if hash_file(checkpoint / name) != checksums[name]:
            return f"its file {name} has changed since it was written"
    return None


@contextmanager
def explain_pickles(checkpoint: Path | None) -> Iterator[None]:
    """Raise RunFolderError where a checkpoint's pickle is refused: it would run code, or is damaged."""
    try:
        yield
    except (pickle.UnpicklingError, EOFError) as error:
        if checkpoint is None:
            raise
        raise RunFolderError(
            str(checkpoint),
            None,
            f"holds a training state that is refused ({' '.join(str(error).split())[:160]})",
            "remove that folder and run the same command again: training resumes from the one before",
        ) from error


def _files(checkpoint: Path) -> list[str]:
    """The names of a checkpoint's files, links included, without its record of checksums."""
    paths = (path for path in checkpoint.rglob("*") if path.is_symlink() or path.is_file())
    return sorted(path.relative_to(checkpoint).as_posix() for path in paths if path.name != COMPLETE)
