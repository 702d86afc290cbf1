"""Extract: one multilingual teacher in, one small monolingual student out (Eliquare, 2022).

Corpora → tokenizer (which pieces stay) → stored predictions, if any → training → evaluation, cost → report; each stage is skipped if its artefact is
there and was made from the same inputs. The weights of dropped pieces go before training or after it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from polydistill.config.extract import ExtractRecipe
from polydistill.disk import read_json, write_text
from polydistill.pipelines.extract.evaluation import evaluate_models, measure_serving
from polydistill.pipelines.extract.scoring import score_teacher
from polydistill.pipelines.extract.state import Extract, of_the_text, prepare
from polydistill.pipelines.extract.student import train_student
from polydistill.pipelines.extract.tokenizer import build_tokenizer
from polydistill.pipelines.run_folder import Run
from polydistill.pipelines.stages.corpora import prepare_corpus
from polydistill.processes import leader_first, leads
from polydistill.reports.card import model_card, with_results
from polydistill.reports.page import report_run
from polydistill.training.arguments import check_arguments, training_arguments

STAGES = ("corpora", "tokenizer", "score", "train", "evaluate", "report")


def run_extract(recipe: ExtractRecipe, run: Run, *, until: str = "report") -> Path:
    """Run an extraction up to a stage of STAGES; returns the run's folder. The student is in student/final."""
    last = STAGES.index(until)
    arguments = check_arguments(recipe.training)
    with run.claim():
        state = prepare(recipe, run)
        training_arguments(arguments, run.path / "student" / "checkpoints", seed=recipe.seed)
        run.record_recipe()
        stages: tuple[Callable[[Extract], None], ...] = (
            build_corpus,
            build_tokenizer,
            score_teacher,
            partial(train_student, arguments=arguments),
            evaluate,
            write_report,
        )
        training = STAGES.index("train")
        with leader_first():
            for stage in stages[: min(last + 1, training)]:
                stage(state)
        for stage in stages[training : last + 1]:
            if stage is stages[training] or leads():
                stage(state)
    return run.path


def build_corpus(state: Extract) -> None:
    """The language's corpus, of examples that fit the teacher."""
    recipe = state.recipe
    with of_the_text():
        state.corpus = prepare_corpus(
            state.run, recipe.language, text=recipe.text, evaluation=recipe.evaluation_texts,
            settings=recipe.corpora, tokenizers=[state.original], field="recipe",
        )  # fmt: skip


def evaluate(state: Extract) -> None:
    """MRR of teacher and student, and what serving them costs."""
    evaluate_models(state)
    measure_serving(state)


def write_report(state: Extract) -> None:
    """The report's page, and the card with what was measured."""
    run = state.run
    with run.stage("report"):
        final = run.path / "student" / "final"
        card = model_card(state.recipe, read_json(final / "initialisation.json"))
        languages = read_json(run.path / "evaluation" / "mlm.json")["languages"]
        write_text(final / "README.md", with_results(card, languages, "student"))
        path = report_run(run.path)
    state.run.say(f"report: {path}")
