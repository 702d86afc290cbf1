"""The training stage of an extraction: the student from its teacher's layers, its training and its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from polydistill.corpora.examples import Examples
from polydistill.disk import Json, read_json, write_json, write_text
from polydistill.masking import masks_identity
from polydistill.models.extract import extract_student
from polydistill.models.importance import read_importance
from polydistill.models.load import load_masked_lm
from polydistill.models.narrow import Narrowing, most_important, narrowing_record
from polydistill.models.precision import resolve_dtype
from polydistill.models.text_start import START_VERSION
from polydistill.pipelines.extract.state import Extract, resolve_student
from polydistill.pipelines.extract.teacher import cut, model_size, teaching_model
from polydistill.pipelines.stages.start import ReadText, piece_rows, start_weights
from polydistill.pipelines.stages.tokenizer import copy_tokenizer
from polydistill.pipelines.stages.training import Training, train_into
from polydistill.processes import leads
from polydistill.reports.card import extract_card
from polydistill.store.reader import Store
from polydistill.training.arguments import portable
from polydistill.training.data import STEPS_VERSION, MaskedTexts, StoredExamples, choose_copies
from polydistill.training.live_teacher import LiveTeacher
from polydistill.training.objectives import Objective, WeightedLabels

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train_student(state: Extract) -> None:
    """Train the student, and write it as a Hugging Face folder; with `trim.when: after`, trim it then."""
    run, after = state.run, state.recipe.trim.when == "after"
    made = training_inputs(state)
    name = "student/untrimmed" if after else "student/final"
    trained = train_into(
        run, name, made, lambda: student_training(state), seed=state.recipe.seed, stage="train"
    )
    if not after or not leads():
        return
    inputs = {
        "stage": "trimmed",
        "student": trained.fingerprint,
        "tokenizer": read_json(run.path / "tokenizer" / "stamp.json")["fingerprint"],
    }

    def write(folder: Path) -> None:
        student = load_masked_lm(str(trained.path), name="student")
        smaller, proof = cut(state, student)
        smaller.save_pretrained(folder)
        record = read_json(trained.path / "initialisation.json") | {"trim": proof}
        record["models"]["student"] = model_size(smaller)
        _write_beside(state, folder, record)
        run.say(
            f"student: {student.num_parameters():,} parameters before the trim, {smaller.num_parameters():,} "
            "after"
        )

    run.make("student/final", inputs, write, stage="trim")


def training_inputs(state: Extract) -> Json:
    """The inputs that the trained student depends on."""
    recipe = state.recipe
    random = recipe.student.init == "random"
    # Without widths, the identity of earlier versions.
    unset = {name for name, size in recipe.student.widths.items() if size is None}
    importance = state.made.get("importance")
    return {
        "stage": "extracted",
        "steps": STEPS_VERSION,
        "corpus": state.corpus.fingerprint,
        "teacher": state.teaching_weights,
        "tokenizer": state.trained_tokenizer.fingerprint,
        "student": recipe.student.model_dump(mode="json", exclude=unset | (set() if random else {"start"}))
        | ({"start_version": START_VERSION} if random else {}),
        "losses": recipe.losses.model_dump(
            mode="json", exclude=None if recipe.losses.logits.highest else {"logits"}
        ),
        "store": state.store.fingerprint if state.store else None,
        "masking": masks_identity(recipe.masking),
        "training": portable(state.arguments),
        "seed": recipe.seed,
    } | ({} if importance is None else {"importance": importance.fingerprint})


class Models(NamedTuple):
    """Teacher and student before training, of one vocabulary.

    record     where the student's weights came from
    narrowing  the parts of its layers that it has kept; None for all
    """

    teacher: PreTrainedModel
    student: PreTrainedModel
    record: Json
    narrowing: Narrowing | None


def initial_models(state: Extract) -> Models:
    """Load the teacher, and make the student."""
    teacher, sizes, proof = teaching_model(state)
    config = resolve_student(state, teacher.config, state.trained_tokenizer)
    narrowing, narrowed = None, {}
    if state.narrows:
        importance = read_importance(state.made["importance"].path)
        narrowing = most_important(importance, config)
        narrowed = {"narrowed": narrowing_record(importance, narrowing)}
    student, record = extract_student(
        teacher, config, state.layers, seed=state.recipe.seed, narrowing=narrowing
    )
    init = state.recipe.student.init
    models = {"teacher": sizes, "student": model_size(student)}
    record = {"init": init if isinstance(init, str) else "layers", "models": models} | record | narrowed
    if state.adapting is not None:
        record["adapted"] = {"steps": state.adapting["max_steps"]}
    record |= {} if proof is None else {"trim": proof}
    return Models(teacher, student, record, narrowing)


def make_models(state: Extract) -> tuple[PreTrainedModel, Json, Objective]:
    """(student before training, record of where its weights came from, what it minimises)."""
    teacher, student, record, narrowing = initial_models(state)
    recipe = state.recipe
    if recipe.student.init == "random":
        text = ReadText(Examples(state.corpus.path / "train.arrow"), state.trained_tokenizer)
        texts = {recipe.language: [text]}
        record |= start_weights(
            state.run,
            student,
            texts,
            {recipe.language: 1.0},
            start=recipe.student.start,
            seed=recipe.seed,
            teachers=lambda: [piece_rows(teacher, state.trained_tokenizer.ordinary_ids)],
        )
    losses = recipe.losses
    if state.store is not None:
        return student, record, WeightedLabels(losses, recipe.language)
    dimensions = None if narrowing is None else torch.from_numpy(narrowing.hidden)
    return student, record, LiveTeacher(teacher, losses, resolve_dtype("auto"), dimensions)


def training_data(state: Extract) -> MaskedTexts | StoredExamples:
    """The language's examples: new masks in every epoch, or those of their store."""
    if state.store is not None:
        store = Store(state.store.path)
        # The teacher that scored has the student's ids.
        same = np.arange(state.trained_tokenizer.size)
        return StoredExamples([store], [same], choose_copies([store], "all", ["teacher"]))
    examples = Examples(state.corpus.path / "train.arrow")
    recipe = state.recipe
    return MaskedTexts(
        examples,
        state.trained_tokenizer,
        recipe.masking,
        max_length=recipe.corpora.max_length,
        seed=recipe.seed,
    )


def student_training(state: Extract) -> Training:
    """The inputs of the student's training."""
    recipe = state.recipe
    student, record, objective = make_models(state)
    layers = "random weights" if state.layers is None else f"layers {' '.join(map(str, state.layers))}"
    models = record["models"]
    state.run.say(
        f"student: {state.depth} of {models['teacher']['layers']} layers from {layers}, "
        f"{models['student']['parameters']:,} of {models['teacher']['parameters']:,} parameters"
    )
    for name, kept in record.get("narrowed", {}).items():
        state.run.say(
            f"  {name}: {kept['kept']:,} of {kept['of']:,}, with {kept['importance']:.1%} of the importance"
        )

    def write_beside(folder: Path) -> None:
        if recipe.trim.when == "after":
            write_json(folder / "initialisation.json", record)
        else:
            _write_beside(state, folder, record)

    return Training(
        student,
        {recipe.language: training_data(state)},
        {recipe.language: 1.0},
        objective,
        state.arguments,
        state.trained_tokenizer.special_ids["pad"],
        recipe.corpora.max_length,
        write_beside,
    )


def _write_beside(state: Extract, folder: Path, record: Json) -> None:
    """Write the tokenizer, the model card and the record of a finished student."""
    copy_tokenizer(state.run.path / "tokenizer", folder)
    write_json(folder / "initialisation.json", record)
    write_text(folder / "README.md", extract_card(state.recipe, record))
