"""The training stages of a balance run: a teacher for each language, then every student."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from polydistill.config.balance import BalancedStudent, BalanceRecipe
from polydistill.config.shared import Arguments, Distillation
from polydistill.corpora.examples import Examples
from polydistill.corpora.sampling import smoothed_probabilities
from polydistill.disk import Json, fingerprint, write_text
from polydistill.errors import RecipeError
from polydistill.evaluation.readers import hidden
from polydistill.masking import masks_identity
from polydistill.models.load import load_masked_lm, weights_fingerprint
from polydistill.models.precision import resolve_dtype
from polydistill.models.text_start import START_VERSION
from polydistill.pipelines.balance.state import Balance, LanguageText, steps_of
from polydistill.pipelines.run_folder import Artefact
from polydistill.pipelines.stages.scoring import scored_store, scoring_engine
from polydistill.pipelines.stages.start import ReadText, start_weights
from polydistill.pipelines.stages.tokenizer import copy_tokenizer
from polydistill.pipelines.stages.training import Training, random_model, train_into
from polydistill.processes import leader_first, leads
from polydistill.reports.card import balance_card
from polydistill.store.reader import Store
from polydistill.tokenization.load import load_tokenizer
from polydistill.training.arguments import check_arguments, portable
from polydistill.training.data import (
    STEPS_VERSION,
    LanguageData,
    MaskedTexts,
    StoredExamples,
    TrainingExample,
)
from polydistill.training.objectives import LiveTeachers, Objective, StoredLabels
from polydistill.training.run import EarlyStopping

# Held-out examples for early stopping, and the seed of their masks.
STOPPING_EXAMPLES, STOPPING_SEED = 500, 2_000_003


def train_teachers(state: Balance) -> None:
    """Train each language's teacher on gold labels, or take an existing one; in teachers/<language>/final."""
    recipe, run = state.recipe, state.run
    arguments = check_arguments(recipe.training | recipe.teachers.training)
    for language, settings in recipe.languages.items():
        if settings.teacher is not None:
            state.teachers[language] = _existing_teacher(state, language, settings.teacher)
            continue
        inputs = {
            **_common_inputs(state),
            "stage": "teacher",
            "language": language,
            "text": state.identity(language),
            "settings": recipe.teachers.model_dump(mode="json", exclude={"training"}),
            # Early stopping compares losses at the evaluation's masks.
            "stopping_masks": recipe.evaluation.mask_probability if recipe.teachers.patience else None,
            "training": portable(arguments),
        }
        name = f"teachers/{language}/final"
        folder = run.find(name, inputs)
        if folder is None:
            begin = partial(_teacher_training, state, language, arguments)
            folder = _train(state, f"teachers/{language}", inputs, begin).path
        state.teachers[language] = run.use(name, folder)


def _teacher_training(state: Balance, language: str, arguments: Arguments) -> Training:
    recipe, text = state.recipe, state.texts[language]
    stopping = None
    if recipe.teachers.patience:
        stopping = EarlyStopping(
            _stopping_examples(state, language), recipe.teachers.patience, recipe.teachers.evaluations
        )
    return _training(
        state,
        {language: text},
        {language: _masked_texts(state, text)},
        {language: 1.0},
        arguments | {"max_steps": steps_of(recipe.teachers.epochs, text.taken, arguments)},
        StoredLabels(Distillation(labels="gold"), [language]),
        options={"stopping": stopping},
        card=balance_card(recipe, [language], f"the teacher of {language}", {language: text.total}),
    )


def train_students(state: Balance) -> None:
    """Train every student, into students/<name>/final."""
    for name, settings in state.recipe.students.items():
        _train_student(state, name, settings)


def _train_student(state: Balance, name: str, settings: BalancedStudent) -> None:
    recipe = state.recipe
    arguments = check_arguments(recipe.training | settings.training)
    texts = state.truncated(settings.truncate)
    soft, stored = settings.labels != "gold", settings.predictions == "stored"
    inputs = {
        **_common_inputs(state),
        "stage": "balanced",
        "texts": {
            language: {**state.identity(language), "taken": text.taken} for language, text in texts.items()
        },
        "teachers": {language: weights_fingerprint(str(state.teachers[language])) for language in texts}
        if soft
        else {},
        "scoring": recipe.scoring.labels if soft and stored else None,
        # Earlier versions wrote a tail even if unused: their students stay valid.
        "settings": settings.model_dump(mode="json", exclude={"training"})
        | {"tail": settings.tail or "bucket"},
        "smoothing_alpha": _alpha(recipe, settings),
        "training": portable(arguments),
    }
    _train(state, f"students/{name}", inputs, partial(_student_training, state, name, settings, arguments))


def _alpha(recipe: BalanceRecipe, settings: BalancedStudent) -> float:
    return recipe.corpora.smoothing_alpha if settings.smoothing_alpha is None else settings.smoothing_alpha


def _student_training(state: Balance, name: str, settings: BalancedStudent, arguments: Arguments) -> Training:
    recipe = state.recipe
    texts = state.truncated(settings.truncate)
    soft, stored = settings.labels != "gold", settings.predictions == "stored"
    examples = sum(text.taken for text in texts.values())
    distillation = Distillation(
        labels=settings.labels,
        teacher_weight=settings.teacher_weight if settings.labels == "both" else 1.0,
        schedule="constant",
        tail=settings.tail or "renormalise",
    )
    data: Mapping[str, LanguageData]
    objective: Objective = StoredLabels(distillation, list(texts))
    if soft and stored:
        with leader_first():
            score_teachers(state)
        data = {language: _stored_examples(state, language, text) for language, text in texts.items()}
    else:
        data = {language: _masked_texts(state, text) for language, text in texts.items()}
        if soft:
            teachers = [load_masked_lm(str(state.teachers[language]), name=language) for language in texts]
            objective = LiveTeachers(
                distillation,
                list(texts),
                teachers=teachers,
                temperature=settings.temperature,
                dtype=resolve_dtype("auto"),
            )
    taken = {language: text.taken for language, text in texts.items()}
    characters = {language: text.total for language, text in texts.items()}
    return _training(
        state,
        texts,
        data,
        smoothed_probabilities(taken, _alpha(recipe, settings)),
        arguments | {"max_steps": steps_of(settings.epochs, examples, arguments)},
        objective,
        card=balance_card(recipe, list(texts), f"the student {name} ({settings.labels} labels)", characters),
        facts={"characters": characters},
    )


def score_teachers(state: Balance) -> None:
    """Score every teacher over its language's text, where students learn from stored predictions."""
    parts = [
        state.truncated(settings.truncate)
        for settings in state.recipe.students.values()
        if settings.labels != "gold" and settings.predictions == "stored"
    ]
    if not parts:
        return
    with scoring_engine(state.recipe, state.run) as score:
        for language in state.recipe.languages:
            if language not in state.stores:
                largest = max((part[language] for part in parts), key=lambda text: text.taken)
                teacher = str(state.teachers[language])
                state.stores[language] = scored_store(
                    state.recipe,
                    state.run,
                    language=language,
                    teacher="teacher",
                    weights=weights_fingerprint(teacher),
                    tokenizer=state.tokenizer,
                    corpus=state.corpora[language],
                    load=partial(load_masked_lm, teacher, name=language),
                    score=score,
                    rows=np.sort(largest.rows),
                )


def _common_inputs(state: Balance) -> Json:
    recipe = state.recipe
    return {
        "steps": STEPS_VERSION,
        "tokenizer": state.tokenizer.fingerprint,
        "model": recipe.model.model_dump(mode="json"),
        "start_version": START_VERSION,
        "masking": masks_identity(recipe.masking),
        "max_length": recipe.corpora.max_length,
        "seed": recipe.seed,
    }


def _training(
    state: Balance,
    texts: Mapping[str, LanguageText],
    data: Mapping[str, LanguageData],
    probabilities: dict[str, float],
    arguments: Arguments,
    objective: Objective,
    *,
    card: str,
    options: Json | None = None,
    facts: Json | None = None,
) -> Training:
    """The inputs of one model's training."""
    tokenizer = state.run.path / "tokenizer"
    model = random_model(state.recipe, state.tokenizer)
    start_weights(
        state.run,
        model,
        {name: [ReadText(text.examples, state.tokenizer, text.rows)] for name, text in texts.items()},
        probabilities,
        start=state.recipe.model.start,
        seed=state.recipe.seed,
    )

    def write_beside(folder: Path) -> None:
        copy_tokenizer(tokenizer, folder)
        write_text(folder / "README.md", card)

    return Training(
        model,
        data,
        probabilities,
        objective,
        arguments,
        state.tokenizer.special_ids["pad"],
        state.recipe.corpora.max_length,
        write_beside,
        facts={"examples": {language: len(examples) for language, examples in data.items()}, **(facts or {})},
        options=options or {},
    )


def _train(state: Balance, place: str, inputs: Json, begin: Callable[[], Training]) -> Artefact:
    """Train one model into <place>/final, from its last complete checkpoint if there is one."""

    def announced() -> Training:
        training = begin()
        state.run.say(f"{place}: {training.arguments['max_steps']:,} steps")
        return training

    made = train_into(state.run, f"{place}/final", inputs, announced, seed=state.recipe.seed, stage=place)
    if leads():
        shutil.rmtree(state.run.path / place / "checkpoints", ignore_errors=True)
    return made


def _existing_teacher(state: Balance, language: str, folder: str) -> Path:
    """An existing teacher; RecipeError if its vocabulary is not the run's."""
    field = f"languages.{language}.teacher"
    tokenizer = load_tokenizer(folder, name=language)
    if fingerprint(tokenizer.backend.get_vocab()) != fingerprint(state.tokenizer.backend.get_vocab()):
        raise RecipeError(
            field,
            folder,
            "its vocabulary is not the run's",
            "set tokenizer.vocabulary to the folder of the run that made it, or let the run train a teacher",
        )
    return state.run.use(f"teachers/{language}/final", Path(folder))


def _masked_texts(state: Balance, text: LanguageText) -> MaskedTexts:
    recipe = state.recipe
    return MaskedTexts(
        text.examples,
        state.tokenizer,
        recipe.masking,
        max_length=recipe.corpora.max_length,
        seed=recipe.seed,
        rows=text.rows,
    )


def _stored_examples(state: Balance, language: str, text: LanguageText) -> StoredExamples:
    """A language's chosen examples in its store, which lacks those without a masked token."""
    store = Store(state.stores[language].path)
    rows = np.flatnonzero(np.isin(store.examples, text.examples.ids[text.rows]))
    choice = np.stack([np.zeros(len(rows), dtype=np.int64), rows], axis=1)
    return StoredExamples([store], [np.arange(state.tokenizer.size)], choice)


def _stopping_examples(state: Balance, language: str) -> list[TrainingExample]:
    """Held-out examples with fixed masks, every chosen token hidden."""
    part: Examples = state.held_out(language)[0]
    chosen = part.take(part.first(STOPPING_EXAMPLES))
    recipe = state.recipe
    texts = MaskedTexts(
        chosen,
        state.tokenizer,
        hidden(recipe.masking, recipe.evaluation.mask_probability),
        max_length=recipe.corpora.max_length,
        seed=recipe.seed + STOPPING_SEED,
    )
    examples = [texts.example(row, 0, 0) for row in range(len(texts))]
    return [example for example in examples if len(example.positions)]
