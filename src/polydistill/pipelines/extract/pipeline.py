"""Extract: one multilingual teacher in, one small monolingual student out (Eliquare, 2022).

Corpora → tokenizer (which pieces stay) → the teacher's own training, if any → stored predictions, if any →
training → evaluation, cost → report; each stage reuses what was made from the same inputs. The weights of
dropped pieces are removed before or after training.
"""

from __future__ import annotations

from polydistill.config.extract import ExtractRecipe
from polydistill.corpora.examples import Examples
from polydistill.disk import read_json, write_text
from polydistill.pipelines.extract.evaluation import evaluate_models, measure_serving
from polydistill.pipelines.extract.plan import plan_extract
from polydistill.pipelines.extract.state import Extract, adapting_arguments, prepare
from polydistill.pipelines.extract.student import student_training, train_student
from polydistill.pipelines.extract.teacher import adapt_teacher, measure_parts, teaching_model
from polydistill.pipelines.extract.tokenizer import build_tokenizer
from polydistill.pipelines.pipeline import Command, Pipeline, Stage
from polydistill.pipelines.stages.corpora import corpora_pool, prepare_corpus
from polydistill.pipelines.stages.evaluation import write_page
from polydistill.pipelines.stages.scoring import needed_shares, scored_store, scoring_engine
from polydistill.pipelines.stages.training import check_training
from polydistill.reports.card import extract_card
from polydistill.reports.card_results import with_results


def check(recipe: ExtractRecipe, command: Command) -> None:
    """Raise UserError for wrong arguments of either training and for missing text; loads no model."""
    check_training(recipe)
    adapting_arguments(recipe)


def build_corpus(state: Extract) -> None:
    """Build the language's corpus of examples that fit the teacher."""
    recipe = state.recipe
    with corpora_pool(recipe.corpora, state.run) as pool:
        state.made["corpus"] = prepare_corpus(
            state.run,
            recipe.language,
            text=recipe.text,
            evaluation=recipe.evaluation_texts,
            settings=recipe.corpora,
            tokenizers=[state.original],
            pool=pool,
            text_field="text",
            evaluation_field="evaluation_texts",
        )


def score_teacher(state: Extract) -> None:
    """Score the teacher over the text with the student's training vocabulary; skipped for a live teacher."""
    recipe = state.recipe
    if recipe.losses.predictions == "live":
        return
    examples = Examples(state.corpus.path / "train.arrow")
    with scoring_engine(recipe, state.run) as score:
        state.made["store"] = scored_store(
            recipe,
            state.run,
            language=recipe.language,
            teacher="teacher",
            weights=state.teaching_weights,
            tokenizer=state.trained_tokenizer,
            corpus=state.corpus,
            load=lambda: teaching_model(state).model,
            score=score,
            share=needed_shares(recipe, state.arguments, len(examples))[0],
        )


def evaluate(state: Extract) -> None:
    """Measure MRR of teacher and student, and the cost of serving them."""
    evaluate_models(state)
    measure_serving(state)


def write_report(state: Extract) -> None:
    """Write the card with the results, and the report."""
    run = state.run
    with run.stage("report"):
        final = run.path / "student" / "final"
        card = extract_card(state.recipe, read_json(final / "initialisation.json"))
        languages = read_json(run.path / "evaluation" / "mlm.json")["languages"]
        write_text(final / "README.md", with_results(card, languages, "student"))
        write_page(run)


PIPELINE = Pipeline(
    ExtractRecipe,
    check,
    prepare,
    (
        Stage("corpora", build_corpus, "leader_first"),
        Stage("tokenizer", build_tokenizer, "leader_first"),
        Stage("adapt", adapt_teacher, "all"),
        Stage("adapt", measure_parts, "leader_first"),
        Stage("score", score_teacher, "leader_first"),
        Stage("train", train_student, "all"),
        Stage("evaluate", evaluate),
        Stage("report", write_report),
    ),
    plan_extract,
    student_training,
)
