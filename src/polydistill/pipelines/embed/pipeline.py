"""Embed: a sentence encoder's stored vectors in, a small sentence encoder out."""

from __future__ import annotations

from polydistill.config.embed import EmbedRecipe
from polydistill.pipelines.embed.evaluation import evaluate_models
from polydistill.pipelines.embed.plan import plan_embed
from polydistill.pipelines.embed.state import Embedding, check, prepare
from polydistill.pipelines.embed.student import student_training, train_student
from polydistill.pipelines.embed.vectors import make_sentences, make_vectors
from polydistill.pipelines.pipeline import Pipeline, Stage
from polydistill.pipelines.stages.evaluation import write_page


def write_report(state: Embedding) -> None:
    """Write the report."""
    with state.run.stage("report"):
        write_page(state.run)


PIPELINE = Pipeline(
    EmbedRecipe,
    check,
    prepare,
    (
        Stage("corpora", make_sentences),
        Stage("vectors", make_vectors),
        Stage("train", train_student),
        Stage("evaluate", evaluate_models),
        Stage("report", write_report),
    ),
    plan_embed,
    student_training,
    distributed=False,
)
