"""The shared training stage: one model, from its last complete checkpoint, into one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from polydistill.artefacts import STAMP, artefact, clear_unless_current, copy_artefact, is_current
from polydistill.config.balance import BalanceRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.shared import Arguments, TextRecipe
from polydistill.corpora.sources import check_texts
from polydistill.disk import Json, bytes_below, explain_disk_errors, read_json, require_space, write_json
from polydistill.models.memory import return_freed_memory
from polydistill.models.student import build_student, student_config
from polydistill.pipelines.run_folder import Artefact, Run
from polydistill.processes import leads, wait_for_all
from polydistill.reports.records import LOG
from polydistill.tokenization.load import LoadedTokenizer, max_positions
from polydistill.tokenization.union import Planned
from polydistill.training.arguments import check_arguments, portable
from polydistill.training.checkpoints import checkpoints_bytes
from polydistill.training.data import LanguageData
from polydistill.training.objectives import Objective
from polydistill.training.run import read_tokens, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Training:
    """The inputs of a training.

    model          before training
    data           language → its examples
    probabilities  language → the share of examples that are drawn from it
    objective      what the model minimises
    pad_id         of the tokenizer that the examples are read by
    max_length     of a sequence
    write_beside   writes the tokenizer, the card and what else belongs to the model into its folder
    facts          more for log.json
    options        further arguments of `training.run.train`
    """

    model: PreTrainedModel
    data: Mapping[str, LanguageData]
    probabilities: Mapping[str, float]
    objective: Objective
    arguments: Arguments
    pad_id: int
    max_length: int
    write_beside: Callable[[Path], None]
    facts: Mapping[str, object] = field(default_factory=dict)
    options: Json = field(default_factory=dict)

    def run(self, folder: Path, **more: object) -> list[dict[str, float]]:
        """Train the model in place, with checkpoints in `folder`; returns the log. `more` has priority."""
        settings: Json = {"arguments": self.arguments, **self.options, **more}
        return train(
            self.model,
            self.data,
            [self.probabilities[language] for language in self.data],
            folder=folder,
            objective=self.objective,
            pad_id=self.pad_id,
            max_length=self.max_length,
            **settings,
        )


def train_into(
    run: Run, name: str, inputs: object, begin: Callable[[], Training], *, seed: int, stage: str
) -> Artefact:
    """Find the model that was made from exactly these inputs, copy it from a run that may be reused, or train
    it. Checkpoints and log.json are beside its folder.

    name   the model's folder within the run's
    begin  makes the inputs of the training; called only if there is something to train or to copy
    stage  its name in timing.json
    """
    target = run.path / name
    if is_current(target, inputs):
        return Artefact(target, inputs)
    training = begin()
    checkpoints = target.parent / "checkpoints"
    equal = equal_model(run, target, inputs)
    # No file may change until every process has finished its look-ups, here and earlier in the stage.
    wait_for_all()
    if equal is not None:
        if leads():
            _copy(run, equal, target, inputs, training)
        wait_for_all()
        return Artefact(target, inputs)
    if leads():
        # Training must not resume from checkpoints of other settings.
        clear_unless_current(checkpoints, inputs)
        require_space(
            checkpoints, checkpoints_bytes(training.model, training.arguments, checkpoints), stage=stage
        )
    wait_for_all()
    with run.stage(stage), explain_disk_errors(checkpoints):
        # What trackers such as W&B call the training.
        named = {"run_name": f"{run.path.name}/{target.parent.relative_to(run.path)}"} | training.arguments
        log = training.run(checkpoints, seed=seed, say=run.say, count=run.count, arguments=named)
    # The optimizer is freed with its trainer; gradients are not.
    training.model.zero_grad(set_to_none=True)
    return_freed_memory()
    if leads():
        # Written before the model: a complete model always has its log.
        record = {
            "log": log,
            "probabilities": dict(training.probabilities),
            "arguments": portable(training.arguments),
            "tokens": tokens_of(training.model, log),
            **training.facts,
        }
        write_json(target.parent / LOG, record, sealed=True)
        with artefact(target, inputs) as folder:
            training.model.save_pretrained(folder)
            training.write_beside(folder)
            fit_tokenizers(folder, training.model)
    wait_for_all()
    return Artefact(target, inputs)


def tokens_of(model: PreTrainedModel, log: Sequence[Mapping[str, float]]) -> int | None:
    """Tokens that a training read, padding included; None if its log lacks its end.

    Trainer's own count of operations is 6 x parameters without embeddings x tokens.
    """
    operations = next((entry["total_flos"] for entry in reversed(log) if "total_flos" in entry), None)
    return None if operations is None else read_tokens(model, operations)


def equal_model(run: Run, target: Path, inputs: object) -> Path | None:
    """A reused run's model that was made from exactly these inputs."""
    folder = run.find(target.relative_to(run.path).as_posix(), inputs)
    if folder is None or folder == target:
        return None
    # A fingerprint ignores the order of keys, and the order of languages decides which examples are drawn.
    stamp = read_json(folder / STAMP, dict)
    if json.dumps(stamp["inputs"]) != json.dumps(inputs):
        return None
    # Only what a stamp lists is copied, and stamps of earlier versions list nothing.
    return folder if stamp.get("files") and (folder.parent / LOG).is_file() else None


def fit_tokenizers(folder: Path, model: PreTrainedModel) -> None:
    """Let the tokenizers of a model's folder cut text where the model ends, not where its training did.

    A table of positions has random rows after the training's, or those of a teacher: there the tokenizers
    keep their length, if the table has as many rows.
    """
    table = any(name.endswith("position_embeddings.weight") for name, _ in model.named_parameters())
    positions = max_positions(model.config)
    # An extraction's student has its tokenizer after the trim.
    for path in (*folder.glob("tokenizer_config.json"), *folder.glob("tokenizer/*/tokenizer_config.json")):
        values = read_json(path, dict)
        length = min(positions, int(values.get("model_max_length", positions))) if table else positions
        write_json(path, values | {"model_max_length": length})


def _copy(run: Run, source: Path, target: Path, inputs: object, training: Training) -> None:
    """Copy another run's model and log, with this run's card. Raises RunFolderError for a damaged log."""
    log = read_json(source.parent / LOG, dict)
    run.say(f"{target.parent.relative_to(run.path)}: taken from {source}")
    require_space(target, bytes_below(source), stage=target.parent.name)
    with explain_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target.parent / LOG, log, sealed=True)
        with artefact(target, inputs) as folder:
            copy_artefact(source, folder)
            training.write_beside(folder)
            fit_tokenizers(folder, training.model)


def random_model(
    recipe: PretrainRecipe | BalanceRecipe, vocabulary: LoadedTokenizer | Planned
) -> PreTrainedModel:
    """The model with random weights, for a vocabulary that exists or is planned."""
    config = student_config(
        recipe.model.model_type,
        recipe.model.config,
        vocabulary_size=vocabulary.size,
        special_ids=vocabulary.special_ids,
        max_length=recipe.corpora.max_length,
    )
    return build_student(config, seed=recipe.seed, field="model.model_type")


def check_training(recipe: TextRecipe, _: object = None) -> None:
    """Raise UserError for wrong arguments of training and for missing text; loads no model."""
    check_arguments(recipe.training)
    check_texts(recipe)
