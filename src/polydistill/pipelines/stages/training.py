"""The training stage that all recipes share: one model, from its last whole checkpoint, into one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polydistill.artefacts import (
    STAMP,
    artefact,
    clear_unless_current,
    copy_artefact,
)
from polydistill.config.balance import BalanceRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.shared import Distillation
from polydistill.disk import (
    bytes_below,
    explain_disk_errors,
    read_json,
    require_space,
    write_json,
)
from polydistill.models.memory import return_freed_memory
from polydistill.models.student import build_student, student_config
from polydistill.pipelines.run_folder import Run
from polydistill.processes import leads, wait_for_all
from polydistill.reports.records import LOG
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.training.checkpoints import checkpoints_bytes
from polydistill.training.run import train


def train_into(
    run: Run,
    target: Path,
    inputs: Any,
    *,
    stage: str,
    model: Any,
    data: Mapping[str, Any],
    probabilities: Mapping[str, float],
    distillation: Distillation,
    write_beside: Callable[[Path], None],
    facts: Mapping[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Train `model` in place and write it into `target`; checkpoints and log.json lie beside that folder. A run that may be
    reused and has the same model gives a copy of it.

    inputs        what the model is made from
    stage         its name in timing.json
    probabilities of each language of `data`
    write_beside  writes the tokenizer, the card and what else belongs to the model into its folder
    facts         more for log.json
    settings      the rest of `train`'s
    """
    checkpoints = target.parent / "checkpoints"
    found = _equal_model(run, target, inputs)
    # Nothing may change before all processes have looked, here and at what their recipe found before.
    wait_for_all()
    if found is not None:
        if leads():
            _copy(run, found, target, inputs, write_beside)
        wait_for_all()
        return
    if leads():
        # Checkpoints of other settings must not be gone on from.
        clear_unless_current(checkpoints, inputs)
        require_space(checkpoints, checkpoints_bytes(model, settings["arguments"], checkpoints), stage=stage)
    wait_for_all()
    with run.stage(stage), explain_disk_errors(checkpoints):
        log = train(
            model, data, [probabilities[language] for language in data], folder=checkpoints,
            distillation=distillation, say=run.say, **settings,
        )  # fmt: skip
    # The optimizer is gone with its trainer.
    model.zero_grad(set_to_none=True)
    return_freed_memory()
    if leads():
        # Before the model: whoever finds the model whole finds its log too.
        record = {"log": log, "probabilities": dict(probabilities), **(facts or {})}
        write_json(target.parent / LOG, record, sealed=True)
        with artefact(target, inputs) as folder:
            model.save_pretrained(folder)
            write_beside(folder)
    wait_for_all()


def _equal_model(run: Run, target: Path, inputs: Any) -> Path | None:
    """A reused run's model that was made from just these inputs."""
    found = run.find(target.relative_to(run.path).as_posix(), inputs)
    if found is None or found == target:
        return None
    # A fingerprint knows no order of keys, and which language's example is drawn hangs on the order of languages.
    stamp = read_json(found / STAMP, dict)
    if json.dumps(stamp["inputs"]) != json.dumps(inputs):
        return None
    # Only what a stamp lists is copied, and stamps of earlier versions list nothing.
    return found if stamp.get("files") and (found.parent / LOG).is_file() else None


def _copy(run: Run, found: Path, target: Path, inputs: Any, write_beside: Callable[[Path], None]) -> None:
    """Another run's model with its log, under this run's card. Raises RunFolderError for a damaged log."""
    log = read_json(found.parent / LOG, dict)
    run.say(f"{target.parent.relative_to(run.path)}: taken from {found}")
    require_space(target, bytes_below(found), stage=target.parent.name)
    with explain_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target.parent / LOG, log, sealed=True)
        with artefact(target, inputs) as folder:
            copy_artefact(found, folder)
            write_beside(folder)


def initial_model(recipe: PretrainRecipe | BalanceRecipe, tokenizer: LoadedTokenizer) -> Any:
    """The model before training."""
    config = student_config(
        recipe.model.model_type, recipe.model.config, vocabulary_size=tokenizer.size,
        special_ids=tokenizer.special_ids, max_length=recipe.corpora.max_length,
    )  # fmt: skip
    return build_student(config, seed=recipe.seed, field="model.model_type")
