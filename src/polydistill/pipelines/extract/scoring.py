"""The scoring stage of an extraction: the teacher's predictions for the language, where they are stored."""

from __future__ import annotations

from typing import Any

from polydistill.pipelines.extract.state import Extract, load_teacher
from polydistill.pipelines.extract.student import cut
from polydistill.pipelines.extract.tokenizer import corpus_of
from polydistill.pipelines.stages.scoring import scored_store, scoring_engine


def score_teacher(state: Extract) -> None:
    """The teacher's store over the text, by the vocabulary that the student trains with; nothing for a live teacher."""
    recipe = state.recipe
    if recipe.losses.predictions == "live":
        return
    with scoring_engine(recipe, state.run) as score:
        state.store = scored_store(
            recipe, state.run, language=recipe.language, teacher="teacher", weights=state.weights,
            tokenizer=state.trained_tokenizer, corpus=corpus_of(state), load=lambda: _load(state), score=score,
        )  # fmt: skip


def _load(state: Extract) -> Any:
    """The teacher as the student meets it: with the kept pieces alone if they are chosen before training."""
    teacher = load_teacher(state.recipe)
    if state.recipe.trim.when == "before":
        teacher, _ = cut(state, teacher)
    return teacher
