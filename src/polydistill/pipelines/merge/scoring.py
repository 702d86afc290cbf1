"""The scoring stage of a merge: the store of every teacher over every one of its languages."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from polydistill.config.shared import Teacher
from polydistill.models.load import load_masked_lm, weights_fingerprint
from polydistill.pipelines.merge.state import Merge
from polydistill.pipelines.stages.scoring import scored_store, scoring_engine


def score_teachers(merge: Merge) -> None:
    """The store of every teacher over every one of its languages."""
    recipe = merge.recipe
    with scoring_engine(recipe, merge.run) as score:
        for name, teacher in recipe.teachers.items():
            languages = [
                language for language, settings in recipe.languages.items() if name in settings.teachers
            ]
            weights = weights_fingerprint(teacher.model, revision=teacher.revision) if languages else ""
            # Loaded once for all its languages, and not at all where every store is there.
            load = cache(partial(_load, name, teacher))
            for language in languages:
                merge.stores[language, name] = scored_store(
                    recipe, merge.run, language=language, teacher=name, weights=weights,
                    tokenizer=merge.tokenizers[name], corpus=merge.corpora[language], load=load, score=score,
                    beside=[merge.tokenizers[other] for other in recipe.languages[language].teachers if other != name],
                )  # fmt: skip


def _load(name: str, teacher: Teacher) -> Any:
    return load_masked_lm(
        teacher.model, name=name, revision=teacher.revision, allow_pickle=teacher.allow_pickle
    )
