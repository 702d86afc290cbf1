"""Balance: monolingual teachers of one vocabulary in, multilingual students out (Limisiewicz et al. 2022).

Vocabulary → corpora → teachers → students → evaluation, probes → report. Models are in
teachers/<language>/final and students/<name>/final; existing models made from the same inputs are reused.
"""

from __future__ import annotations

from collections.abc import Sequence

from polydistill.config.balance import BalanceRecipe
from polydistill.corpora.sources import check_texts
from polydistill.disk import read_json, write_text
from polydistill.errors import RecipeError
from polydistill.pipelines.balance.evaluation import evaluate_models, probe_students
from polydistill.pipelines.balance.models import score_teachers, train_students, train_teachers
from polydistill.pipelines.balance.plan import plan_balance
from polydistill.pipelines.balance.state import Balance
from polydistill.pipelines.pipeline import Command, Pipeline, Stage
from polydistill.pipelines.run_folder import Run
from polydistill.pipelines.stages.corpora import prepare_corpora
from polydistill.pipelines.stages.evaluation import write_page
from polydistill.pipelines.stages.training import random_model
from polydistill.reports.card_results import with_results
from polydistill.tasks.tagged import read_tagged_tasks
from polydistill.training.arguments import check_arguments, training_arguments


def check(recipe: BalanceRecipe, command: Command) -> None:
    """Raise UserError for wrong arguments of training, unknown tasks and missing text; loads no model."""
    check_texts(recipe)
    for arguments in (recipe.teachers.training, *(student.training for student in recipe.students.values())):
        check_arguments(recipe.training | arguments)
    _check_tasks(recipe, command.probe)


def prepare(recipe: BalanceRecipe, run: Run, command: Command) -> Balance:
    """Check all that can be checked before hours of training."""
    for arguments in (recipe.teachers.training, *(student.training for student in recipe.students.values())):
        training_arguments(
            check_arguments(recipe.training | arguments), run.path / "checkpoints", seed=recipe.seed
        )
    # Read in full, so that a broken row ends the run now and not after training.
    read_tagged_tasks(recipe.probe.tasks, field="probe.tasks")
    return Balance(recipe, run, command.until, command.probe)


def make_tokenizer(state: Balance) -> None:
    """Make the vocabulary of all models; an unusable architecture is refused before text is packed."""
    random_model(state.recipe, state.tokenizer)


def make_corpora(state: Balance) -> None:
    """Pack every language's corpus by the vocabulary, and report how much of it models see."""
    state.corpora = prepare_corpora(state.recipe, state.run, state.tokenizer)
    for language, text in state.texts.items():
        state.held_out(language)
        state.run.say(f"{language}: {text.total:,} characters in {text.taken:,} examples")


def score_last(state: Balance) -> None:
    """Score the teachers, if the run ends with that. Finished students need no stores."""
    if state.until == "score":
        score_teachers(state)


def evaluate(state: Balance) -> None:
    """Measure MRR and D of teachers and students, and probe the students."""
    evaluate_models(state)
    probe_students(state, state.probe)


def write_report(state: Balance) -> None:
    """Write every model's card with its results, and the report."""
    with state.run.stage("report"):
        _write_cards(state)
        write_page(state.run)


def _write_cards(state: Balance) -> None:
    """Add the results to every model's card."""
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


PIPELINE = Pipeline(
    BalanceRecipe,
    check,
    prepare,
    (
        # Examples are packed by the vocabulary, so `corpora` makes that too.
        Stage("tokenizer", make_tokenizer, "leader_first"),
        Stage("corpora", make_corpora, "leader_first"),
        Stage("score", train_teachers, "all"),
        Stage("score", score_last, "leader_first"),
        Stage("train", train_students, "all"),
        Stage("evaluate", evaluate),
        Stage("report", write_report),
    ),
    plan_balance,
    probes=True,
)
