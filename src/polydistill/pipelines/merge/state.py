"""The state that the stages of a merge share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from polydistill.config.merge import MergeRecipe
from polydistill.config.shared import Arguments, Teacher
from polydistill.corpora.examples import Examples
from polydistill.corpora.sampling import smoothed_probabilities
from polydistill.errors import RecipeError
from polydistill.models.load import load_masked_lm
from polydistill.pipelines.run_folder import Artefact, Run
from polydistill.pipelines.stages.scoring import needed_shares
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.union import Union

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Texts are packed by the teachers' tokenizers. A student's own cuts them after this many times their length.
LONGER = 2


@dataclass
class Merge:
    """The state of a merge.

    arguments  of TrainingArguments, checked
    union      of all teachers' pieces
    corpora    language → its corpus
    own        the student's tokenizer, if its vocabulary is not the union
    longest    tokens of the student's longest sequence, from `prepare`
    stores     (language, teacher) → the stores of the teacher's predictions, one for each draw of masks
    labels     the same in the student's vocabulary, if that is not the union
    """

    recipe: MergeRecipe
    run: Run
    arguments: Arguments
    tokenizers: dict[str, LoadedTokenizer]
    union: Union
    corpora: dict[str, Artefact] = field(default_factory=dict)
    own: LoadedTokenizer | None = None
    longest: int | None = None
    stores: dict[tuple[str, str], list[Artefact]] = field(default_factory=dict)
    labels: dict[tuple[str, str], list[Artefact]] = field(default_factory=dict)

    @property
    def vocabulary(self) -> Union | LoadedTokenizer:
        """The student's vocabulary: its size and special tokens."""
        return self.own or self.union

    @property
    def student_length(self) -> int:
        """Tokens of the student's longest sequence."""
        return self.longest or self.recipe.corpora.max_length

    def lengthen(self, positions: int) -> None:
        """Let a student with a vocabulary of its own, which may need more tokens for a text, use up to LONGER
        times the teachers' as far as it has positions.
        """
        self.longest = max(
            self.recipe.corpora.max_length, min(positions, LONGER * self.recipe.corpora.max_length)
        )

    @property
    def num_examples(self) -> dict[str, int]:
        """Language → the number of its training examples."""
        return {
            language: len(Examples(corpus.path / "train.arrow")) for language, corpus in self.corpora.items()
        }

    @property
    def maps(self) -> dict[str, npt.NDArray[np.int64]]:
        """Teacher → its ids in the student's vocabulary."""
        return dict(zip(self.recipe.teachers, self.union.maps, strict=True))

    @property
    def store_fingerprints(self) -> dict[str, str]:
        """`language/teacher` → the fingerprint of its store; later draws of masks as `teacher@draw`."""
        return {
            "/".join(key) + (f"@{draw}" if draw else ""): store.fingerprint
            for key, stores in self.stores.items()
            for draw, store in enumerate(stores)
        }


def scored_shares(
    recipe: MergeRecipe, arguments: Arguments, examples: Mapping[str, int]
) -> dict[str, list[float]]:
    """Language → for each draw of masks, the share of its text that its teachers score.

    examples  language → its number of examples, at least 1
    """
    probabilities = smoothed_probabilities(examples, recipe.corpora.smoothing_alpha)
    step = untaught_step(recipe, arguments)
    return {
        language: needed_shares(
            recipe,
            arguments,
            examples[language],
            steps=arguments["max_steps"] if step is None else step,
            share=probabilities[language],
            copies=len(settings.teachers) if settings.use == "all" else 1,
            draws=recipe.scoring.draws,
        )
        for language, settings in recipe.languages.items()
    }


def untaught_step(recipe: MergeRecipe, arguments: Arguments) -> int | None:
    """The first step from which teachers' labels have no weight; None if they have until the end.

    From it on, training draws text that no teacher needs to score. With `scoring.examples: all` and with
    soft labels alone it draws from the stores to the end.
    """
    settings = recipe.distillation
    labels = {language.labels or settings.labels for language in recipe.languages.values()}
    if (
        recipe.scoring.examples == "all"
        or "both" not in labels
        or "soft" in labels
        or settings.final_teacher_weight > 0
        or settings.schedule == "constant"
        or settings.annealing_share == 1
    ):
        return None
    # As `training.objectives.Progress.share` counts.
    step = max(1, math.ceil(settings.annealing_share * (arguments["max_steps"] - 1)))
    return step if step < arguments["max_steps"] else None


def check_teacher(recipe: MergeRecipe, tokenizer: LoadedTokenizer) -> None:
    """Raise RecipeError for a teacher that cannot take the recipe's sequences or predict its top k."""
    if tokenizer.max_length < recipe.corpora.max_length:
        raise RecipeError(
            "corpora.max_length",
            recipe.corpora.max_length,
            f"teacher {tokenizer.name} takes at most {tokenizer.max_length} tokens",
            f"set corpora.max_length to {tokenizer.max_length} or less",
        )
    if recipe.scoring.top_k > tokenizer.size:
        raise RecipeError(
            "scoring.top_k",
            recipe.scoring.top_k,
            f"larger than the vocabulary of teacher {tokenizer.name} ({tokenizer.size} pieces)",
            "choose a smaller k",
        )


def load_teacher(name: str, teacher: Teacher) -> PreTrainedModel:
    """Load a teacher, on the processor."""
    return load_masked_lm(
        teacher.model, name=name, revision=teacher.revision, allow_pickle=teacher.allow_pickle
    )
