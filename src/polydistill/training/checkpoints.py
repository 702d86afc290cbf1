"""Checkpoints: which of them are whole, and whether a training has ended at one."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerState

from polydistill.disk import bytes_below, hash_file, read_record, write_json
from polydistill.errors import RunFolderError

COMPLETE = "complete.json"


def checkpoints_bytes(model: Any, arguments: dict[str, Any], folder: Path) -> int:
    """Bytes that a training's folder of checkpoints and the model that is made of it come to take together.

    arguments  of TrainingArguments, checked
    folder     of the checkpoints, which may be those of an interrupted run
    """
    weights: int = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    moments = 2 if "adam" in str(arguments.get("optim", "adamw")) else 1
    steps, every = arguments.get("max_steps") or 0, arguments.get("save_steps", 1)
    if arguments.get("save_strategy") == "no":
        return weights
    if (folder / f"checkpoint-{steps}").is_dir():
        return bytes_below(folder) + weights
    saved = math.ceil(1 / every if every < 1 else steps / every) if steps > 0 else math.inf
    # One more than is kept is there while it is being written.
    kept = min(saved, int(arguments.get("save_total_limit", 2)) + 1)
    return weights * max((1 + moments) * int(kept), 1 + (1 + moments) * int(min(kept, 2)))


def mark_complete(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint's files: its last file, so that a checkpoint without it is a part."""
    write_json(
        checkpoint / COMPLETE,
        {name: hash_file(checkpoint / name) for name in _files(checkpoint)},
        sealed=True,
    )


def finished_state(checkpoint: Path | None, *, total: int, patience: int) -> TrainerState | None:
    """The state of a checkpoint that is a training's last, after `total` steps or where early stopping ended it; None
    if there is more to train. Trainer itself forgets on resuming that it had stopped early, and would go on.
    """
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    # Of whichever callback counts: teachers' and fine-tunings' have other names.
    counted = [
        callback.get("attributes", {}).get("early_stopping_patience_counter", 0)
        for callback in state.stateful_callbacks.values()
        if isinstance(callback, dict)
    ]
    stopped = 0 < patience <= max(counted, default=0)
    return state if stopped or state.global_step >= total else None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; parts and damaged ones are passed over."""
    return next(
        (path for path in checkpoints_in(folder) if (path / COMPLETE).is_file() and not fault_of(path)), None
    )


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, parts of them too, the newest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    # Of a number that Python does not read no training has written a checkpoint.
    found = [path for path, step in steps.items() if step.isascii() and step.isdigit() and len(step) < 20]
    return sorted(found, key=lambda path: -int(steps[path]))


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint that was written to its end, in words; None if it is whole."""
    checksums = read_record(checkpoint / COMPLETE)
    if not checksums:
        return f"its {COMPLETE} is damaged"
    # Also what is not listed would be loaded, and a list that is short is not the one that was written.
    there = _files(checkpoint)
    for name in sorted(checksums.keys() | set(there)):
        if name not in there:
            return f"its file {name} is gone"
        if name not in checksums:
            return f"its file {name} is none that was written with it"
        if hash_file(checkpoint / name) != checksums[name]:
            return f"its file {name} is not what was written"
    return None


@contextmanager
def explain_pickles(checkpoint: Path | None) -> Iterator[None]:
    """Turn the refusal of a checkpoint's pickle that would run code, or that is none, into a RunFolderError."""
    try:
        yield
    except (pickle.UnpicklingError, EOFError) as error:
        if checkpoint is None:
            raise
        raise RunFolderError(
            str(checkpoint),
            None,
            f"holds a state of training that is refused ({' '.join(str(error).split())[:160]})",
            "remove that folder and run the same command again: training goes on from the checkpoint before",
        ) from error


def _files(checkpoint: Path) -> list[str]:
    """The names of a checkpoint's files, links among them, its record left out."""
    found = (path for path in checkpoint.rglob("*") if path.is_symlink() or path.is_file())
    return sorted(path.relative_to(checkpoint).as_posix() for path in found if path.name != COMPLETE)
