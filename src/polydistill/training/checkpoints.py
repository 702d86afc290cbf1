"""Checkpoints: which of them are whole, and whether a training has ended at one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerState

from polydistill.files import bytes_below, hash_file, read_record, write_json

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
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)
    write_json(
        checkpoint / COMPLETE, {path.relative_to(checkpoint).as_posix(): hash_file(path) for path in files}
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
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for checkpoint in sorted(found, key=lambda path: -int(path.name.removeprefix("checkpoint-"))):
        if not (checkpoint / COMPLETE).is_file():
            continue
        checksums = read_record(checkpoint / COMPLETE)
        if checksums and all(
            (checkpoint / name).is_file() and hash_file(checkpoint / name) == value
            for name, value in checksums.items()
        ):
            return checkpoint
    return None
