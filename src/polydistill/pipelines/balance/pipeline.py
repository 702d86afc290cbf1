"""Balance: monolingual teachers of one vocabulary in, multilingual students out (Limisiewicz et al. 2022).

Vocabulary → corpora → teachers → students → evaluation, probes → report; every model is a stage that is skipped if it
is there and was made from the same inputs.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from polydistill.artefacts import artefact, is_current
from polydistill.config.balance import BalanceRecipe
from polydistill.disk import read_json, write_text
from polydistill.errors import RecipeError
from polydistill.pipelines.balance.evaluation import evaluate_models, probe_students
from polydistill.pipelines.balance.models import score_teachers, train_students, train_teachers
from polydistill.pipelines.balance.state import Balance
from polydistill.pipelines.run_folder import Run
from polydistill.pipelines.stages.corpora import prepare_corpora
from polydistill.pipelines.stages.tokenizer import build_tokenizer, shared_tokenizer
from polydistill.pipelines.stages.training import initial_model
from polydistill.processes import leader_first, leads
from polydistill.reports.card import with_results
from polydistill.reports.page import report_run
from polydistill.tasks.tagged import read_tasks
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.training.arguments import check_arguments, training_arguments

STAGES = ("corpora", "tokenizer", "score", "train", "evaluate", "report")


def run_balance(
    recipe: BalanceRecipe, run: Run, *, until: str = "report", probe: Sequence[str] | None = None
) -> Path:
    """Run a balance recipe up to a stage of STAGES; returns the run's folder.

    probe  with `until: evaluate`, the probes' tasks to run; by default all of the recipe's
    Models are in teachers/<language>/final and students/<name>/final. Corpora are packed by the shared vocabulary, so
    `corpora` makes that too; `score` trains the teachers first.
    """
    last = STAGES.index(until)
    check_training(recipe, run)
    _check_tasks(recipe, probe)
    with run.claim():
        # All of it: a broken row is found now, and not when hours of training are over.
        read_tasks(recipe.probe.tasks, field="probe.tasks")
        run.record_recipe()
        with leader_first():
            tokenizer = vocabulary(recipe, run)
            # An architecture that is refused is so before any text is read.
            initial_model(recipe, tokenizer)
            state = Balance(recipe, run, tokenizer, prepare_corpora(recipe, run, tokenizer))
        for language, text in state.texts.items():
            state.held_out(language)
            run.say(f"{language}: {text.total:,} characters in {text.taken:,} examples")
        if last >= STAGES.index("score"):
            train_teachers(state)
        if until == "score":
            with leader_first():
                score_teachers(state)
        if last >= STAGES.index("train"):
            train_students(state)
        if not leads():
            return run.path
        if last >= STAGES.index("evaluate"):
            evaluate_models(state)
            probe_students(state, probe)
        if last >= STAGES.index("report"):
            with run.stage("report"):
                _write_cards(state)
                path = report_run(run.path)
            run.say(f"report: {path}")
    return run.path


def _write_cards(state: Balance) -> None:
    """Every model's card, with what was measured."""
    languages = read_json(state.run.path / "evaluation" / "mlm.json")["languages"]
    for name in state.recipe.students:
        readme = state.run.path / "students" / name / "final" / "README.md"
        write_text(readme, with_results(readme.read_text("utf-8"), languages, name))
    for language in state.recipe.languages:
        readme = state.run.path / "teachers" / language / "final" / "README.md"
        # A teacher of another run has that run's card.
        if readme.is_file():
            card = with_results(readme.read_text("utf-8"), {language: languages[language]}, "teacher")
            write_text(readme, card)


def check_training(recipe: BalanceRecipe, run: Run) -> None:
    """Raise RecipeError for arguments of training that cannot be."""
    for arguments in (recipe.teachers.training, *(student.training for student in recipe.students.values())):
        training_arguments(
            check_arguments(recipe.training | arguments), run.path / "checkpoints", seed=recipe.seed
        )


def vocabulary(recipe: BalanceRecipe, run: Run) -> LoadedTokenizer:
    """The tokenizer of all models: trained on all text, or of an earlier run."""
    folder = recipe.tokenizer.vocabulary
    if folder is None:
        return build_tokenizer(recipe, run)
    try:
        source = shared_tokenizer(recipe, Path(folder))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise RecipeError(
            "tokenizer.vocabulary",
            folder,
            f"holds no tokenizer of an earlier run ({error})",
            "name a run's `tokenizer` folder or one of its models' folders, or leave it out",
        ) from error
    target = run.path / "tokenizer"
    inputs = {"stage": "vocabulary", "tokenizer": source.fingerprint}
    if not is_current(target, inputs):
        with artefact(target, inputs) as copy:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(Path(folder) / name, copy)
    return shared_tokenizer(recipe, target)


def _check_tasks(recipe: BalanceRecipe, probe: Sequence[str] | None) -> None:
    known = ", ".join(recipe.probe.tasks) or "none"
    for task in probe or ():
        if task not in recipe.probe.tasks:
            raise RecipeError(
                "--probe",
                task,
                f"the recipe's probe.tasks have {known}",
                "name one of these, or add it there",
            )
