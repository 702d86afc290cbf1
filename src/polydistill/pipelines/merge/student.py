"""The training stage of a merge: the initial student, its examples, and the finished folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from polydistill.config.merge import MergeRecipe
from polydistill.config.shared import MODEL_TYPE
from polydistill.corpora.examples import Examples
from polydistill.corpora.sampling import smoothed_probabilities
from polydistill.disk import Json, links_in, read_json, write_json, write_text
from polydistill.models.composed_start import SpellingTeacher, choose_teachers, composed, start_from_spellings
from polydistill.models.load import masked_lm_config, weights_fingerprint
from polydistill.models.student import (
    TeacherRows,
    build_student,
    check_encoder,
    start_from_teachers,
    student_config,
)
from polydistill.models.teacher_start import PieceRows
from polydistill.models.text_start import START_VERSION
from polydistill.pipelines.merge.state import Merge, load_teacher, untaught_step
from polydistill.pipelines.stages.start import ReadText, piece_rows, start_weights
from polydistill.pipelines.stages.training import Training, train_into
from polydistill.reports.card import merge_card
from polydistill.scoring.crossing import CROSSING_VERSION
from polydistill.store.reader import Store
from polydistill.tokenization.crossing import spell
from polydistill.training.arguments import portable
from polydistill.training.data import (
    STEPS_VERSION,
    LanguageData,
    MaskedTexts,
    StoredExamples,
    StoredThenText,
    choose_copies,
)
from polydistill.training.objectives import StoredLabels

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def train_student(merge: Merge) -> None:
    """Train the student on the stores, and write it as a Hugging Face folder."""
    recipe, run = merge.recipe, merge.run
    inputs = {
        "stage": "student",
        "steps": STEPS_VERSION,
        "stores": merge.store_fingerprints,
        **({} if merge.own is None else {"labels_version": CROSSING_VERSION}),
        "tokenizer": read_json(run.path / "tokenizer" / "stamp.json")["fingerprint"],
        "student": student_identity(recipe),
        "distillation": recipe.distillation.model_dump(mode="json"),
        # A list, because a checkpoint identifies languages by position.
        "use": [[language, settings.use] for language, settings in recipe.languages.items()],
        "labels": language_labels(recipe),
        "smoothing_alpha": recipe.corpora.smoothing_alpha,
        # Languages are drawn by the examples of their corpora; before, by those of their stores.
        "drawn_by": "corpora",
        "training": portable(merge.arguments),
        "seed": recipe.seed,
        "encoder": _encoder_weights(merge),
    }
    if (step := untaught_step(recipe, merge.arguments)) is not None:
        inputs["text_from"] = step
    train_into(run, "student/final", inputs, lambda: student_training(merge), seed=recipe.seed, stage="train")


def student_identity(recipe: MergeRecipe) -> Json:
    """The settings that determine the student before training."""
    random = recipe.student.init == "random"
    settings = recipe.student.model_dump(mode="json", exclude=None if random else {"start"})
    # Earlier versions wrote the architecture even if it was unset: their students stay valid.
    settings["model_type"] = recipe.student.model_type or MODEL_TYPE
    return settings | ({"start_version": START_VERSION} if random else {})


def student_training(merge: Merge) -> Training:
    """The inputs of the student's training."""
    recipe, run = merge.recipe, merge.run
    data, probabilities = training_data(merge)
    model, record = initial_student(merge, probabilities)
    run.say(
        "training from "
        + ("random weights" if recipe.student.init == "random" else str(record["encoder_from"]))
    )
    run.say(
        f"student: {sum(p.numel() for p in model.parameters()):,} parameters, "
        + ", ".join(f"{language} {share:.0%}" for language, share in probabilities.items())
    )

    def write_beside(folder: Path) -> None:
        shutil.copytree(run.path / "tokenizer", folder, dirs_exist_ok=True, ignore=_only_tokenizer_files)
        for language in recipe.languages if merge.own is None else ():
            shutil.copytree(
                run.path / "tokenizer" / language,
                folder / "tokenizer" / language,
                dirs_exist_ok=True,
                ignore=links_in,
            )
        write_text(folder / "README.md", merge_card(recipe, record))
        write_json(folder / "initialisation.json", record)

    objective = StoredLabels(recipe.distillation, list(data), language_labels(recipe))
    return Training(
        model,
        data,
        probabilities,
        objective,
        merge.arguments,
        merge.vocabulary.special_ids["pad"],
        merge.student_length,
        write_beside,
    )


def training_data(merge: Merge) -> tuple[dict[str, LanguageData], dict[str, float]]:
    """Each language's examples, and its sampling probability."""
    step = untaught_step(merge.recipe, merge.arguments)
    data: dict[str, LanguageData] = {}
    for language in merge.recipe.languages:
        stored = stored_examples(merge, language)
        data[language] = (
            stored if step is None else StoredThenText(stored, later_texts(merge, language, stored), step)
        )
    return data, smoothed_probabilities(merge.num_examples, merge.recipe.corpora.smoothing_alpha)


def language_labels(recipe: MergeRecipe) -> dict[str, str]:
    """Language → its labels, for languages that set their own."""
    return {language: s.labels for language, s in recipe.languages.items() if s.labels is not None}


def read_texts(merge: Merge) -> dict[str, list[ReadText]]:
    """Language → its training text, once for each teacher whose copies the student is trained on; once with a
    vocabulary of its own.
    """
    texts = {}
    for language, settings in merge.recipe.languages.items():
        examples = Examples(merge.corpora[language].path / "train.arrow")
        if merge.own is not None:
            texts[language] = [ReadText(examples, merge.own)]
            continue
        teachers = settings.teachers if settings.use in ("all", "best") else [settings.use]
        texts[language] = [
            ReadText(examples, merge.tokenizers[name], mapping=merge.maps[name]) for name in teachers
        ]
    return texts


def initial_student(merge: Merge, probabilities: Mapping[str, float]) -> tuple[PreTrainedModel, Json]:
    """The student before training, and the record of where its weights came from.

    probabilities  language → the share of examples that are drawn from it
    """
    recipe = merge.recipe
    settings = recipe.student
    config, first = resolve_student(recipe, merge.vocabulary)
    model = build_student(config, seed=recipe.seed)
    record: Json = {"init": settings.init, "seed": recipe.seed, "config": json.loads(config.to_json_string())}
    if first is not None and merge.own is not None:
        order = [first, *(name for name in recipe.teachers if name != first)]
        record |= start_from_spellings(
            model,
            [spelling_teacher(merge, name) for name in order],
            special_ids=merge.own.special_ids,
            row_map=settings.row_map,
            seed=recipe.seed,
        )
    elif first is not None:
        parts = []
        for name in [first, *(name for name in recipe.teachers if name != first)]:
            tokenizer = merge.tokenizers[name]
            parts.append(
                TeacherRows(
                    name,
                    load_teacher(name, recipe.teachers[name]),
                    merge.maps[name],
                    tokenizer.ordinary_ids,
                    tokenizer.special_ids,
                )
            )
        record |= start_from_teachers(model, parts, row_map=settings.row_map, seed=recipe.seed)
    else:
        record |= start_weights(
            merge.run,
            model,
            read_texts(merge),
            probabilities,
            start=settings.start,
            seed=recipe.seed,
            teachers=lambda: read_rows(merge),
        )
    return model, record


def read_rows(merge: Merge) -> Iterator[PieceRows]:
    """The teachers' embedding rows, in the order of the union; one teacher at a time is in memory."""
    if merge.own is not None:
        spellings = [spell(merge.own, tokenizer) for tokenizer in merge.tokenizers.values()]
        chosen = choose_teachers(spellings)
        for index, (name, teacher) in enumerate(merge.recipe.teachers.items()):
            ids = np.flatnonzero(chosen == index)
            if len(ids):
                rows = load_teacher(name, teacher).get_input_embeddings().weight.detach().float()
                yield PieceRows(composed(rows, spellings[index].ids[ids]).cpu().numpy(), ids)
        return
    for name, teacher in merge.recipe.teachers.items():
        yield piece_rows(load_teacher(name, teacher), merge.tokenizers[name].ordinary_ids, merge.maps[name])


def spelling_teacher(merge: Merge, name: str) -> SpellingTeacher:
    """A teacher, and how its tokenizer spells the pieces of the student's own vocabulary."""
    assert merge.own is not None
    tokenizer = merge.tokenizers[name]
    return SpellingTeacher(
        name,
        load_teacher(name, merge.recipe.teachers[name]),
        spell(merge.own, tokenizer),
        tokenizer.ordinary_ids,
        tokenizer.special_ids,
    )


class Vocabulary(Protocol):
    """What an architecture needs to know of a vocabulary."""

    @property
    def size(self) -> int: ...
    @property
    def special_ids(self) -> dict[str, int]: ...


def resolve_student(recipe: MergeRecipe, vocabulary: Vocabulary) -> tuple[PreTrainedConfig, str | None]:
    """(the student's configuration, the name of the teacher that its encoder comes from, if any).

    Raises RecipeError for an unusable architecture, or one that does not fit this encoder.
    """
    settings = recipe.student
    first, base, model_type = None, None, settings.model_type or MODEL_TYPE
    if settings.init == "teachers":
        first = settings.encoder_from or next(iter(recipe.teachers))
        base = masked_lm_config(
            recipe.teachers[first].model, name=first, revision=recipe.teachers[first].revision
        )
        model_type = settings.model_type or base.model_type
    config = student_config(
        model_type,
        settings.config,
        vocabulary_size=vocabulary.size,
        special_ids=vocabulary.special_ids,
        max_length=recipe.corpora.max_length,
        base=base,
    )
    if first is not None:
        check_encoder(config, base, first)
    return config, first


def stored_examples(merge: Merge, language: str) -> StoredExamples:
    """A language's training examples, for each draw of masks chosen from its teachers' copies by `use`."""
    settings = merge.recipe.languages[language]
    # Draw → the teachers' stores; all teachers have as many draws.
    known = merge.stores if merge.own is None else merge.labels
    draws = [
        [Store(store.path) for store in stores]
        for stores in zip(*(known[language, name] for name in settings.teachers), strict=True)
    ]
    choices = []
    for number, stores in enumerate(draws):
        weights = None
        if settings.use == "best" and merge.recipe.compares_characters:
            # Copies mask the same words, hence the same characters: total loss and loss per character give
            # the same order.
            weights = [store.num_masked_of.astype(np.float64) for store in stores]
        choice = choose_copies(stores, settings.use, settings.teachers, weights=weights)
        choices.append(choice + np.array([number * len(stores), 0]))
    same = None if merge.own is None else np.arange(merge.own.size)
    maps = [merge.maps[name] if same is None else same for name in settings.teachers] * len(draws)
    return StoredExamples([store for stores in draws for store in stores], maps, np.concatenate(choices))


def later_texts(merge: Merge, language: str, stored: StoredExamples) -> list[MaskedTexts]:
    """A language's text after its teachers' part, as each of them cuts it, with masks of its own.

    Text that no teacher has scored, or all text where that is less than what they have scored.
    """
    recipe = merge.recipe
    settings = recipe.languages[language]
    examples = Examples(merge.corpora[language].path / "train.arrow")
    scored = np.isin(examples.ids, np.concatenate([store.examples for store in stored.stores]))
    rows = np.flatnonzero(~scored) if np.count_nonzero(~scored) >= np.count_nonzero(scored) else None
    teachers = settings.teachers if settings.use in ("all", "best") else [settings.use]
    readers = [(merge.tokenizers[name], merge.maps[name]) for name in teachers]
    return [
        MaskedTexts(
            examples,
            tokenizer,
            recipe.masking,
            max_length=merge.student_length,
            # After the seeds of the stores' draws of masks.
            seed=recipe.seed + (recipe.scoring.draws << 32),
            rows=rows,
            mapping=mapping,
        )
        for tokenizer, mapping in (readers if merge.own is None else [(merge.own, None)])
    ]


def _encoder_weights(merge: Merge) -> dict[str, str]:
    student = merge.recipe.student
    if student.init == "random" and student.start.rows not in ("teachers", "both"):
        return {}
    return {
        name: weights_fingerprint(t.model, revision=t.revision) for name, t in merge.recipe.teachers.items()
    }


def _only_tokenizer_files(folder: str, names: list[str]) -> list[str]:
    return [
        *links_in(folder, names),
        *(
            name
            for name in names
            if (Path(folder) / name).is_dir() or name in ("stamp.json", "vocabulary.json")
        ),
    ]
