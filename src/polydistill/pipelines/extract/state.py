"""The state that the stages of an extraction share, and the checks before the first of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from polydistill.config.extract import ExtractRecipe
from polydistill.config.shared import Arguments
from polydistill.disk import Json, read_json
from polydistill.errors import RecipeError
from polydistill.models.extract import check_extractable, check_extraction, choose_layers, extracted_config
from polydistill.models.features import layer_list
from polydistill.models.load import load_masked_lm, model_config, weights_fingerprint
from polydistill.models.narrow import first_parts, is_narrower, width_fields
from polydistill.models.student import build_student
from polydistill.pipelines.pipeline import Command
from polydistill.pipelines.run_folder import Artefact, Run
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer
from polydistill.tokenization.selection import TrimFields, select
from polydistill.training.arguments import check_arguments, training_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

KEPT = "kept.json"
# The recipe's fields that decide a trim.
TRIM_FIELDS = TrimFields("teacher", "trim.size", "trim.min_document_share")


@dataclass
class Extract:
    """The state of an extraction.

    arguments  of TrainingArguments, checked
    original   the teacher's tokenizer
    depth, layers  of the student, see `models.choose_layers`
    narrows    whether these layers lose dimensions, heads or units
    made       artefacts by stage: `corpus`, `adapted` where the teacher is trained first, `importance` where
               the student is narrower, and `store` where the teacher's predictions are stored
    """

    recipe: ExtractRecipe
    run: Run
    arguments: Arguments
    original: LoadedTokenizer
    depth: int
    layers: list[int] | None
    narrows: bool = False
    made: dict[str, Artefact] = field(default_factory=dict)

    @property
    def corpus(self) -> Artefact:
        """The language's corpus, from the corpora stage."""
        return self.made["corpus"]

    @property
    def adapted(self) -> Artefact | None:
        """The teacher after its own training, from the adapting stage; None if it stays as it is."""
        return self.made.get("adapted")

    @property
    def store(self) -> Artefact | None:
        """The teacher's stored predictions, from the scoring stage; None for a live teacher."""
        return self.made.get("store")

    @property
    def trims(self) -> bool:
        """Whether pieces are dropped."""
        return self.recipe.trim.when != "none"

    @cached_property
    def kept(self) -> npt.NDArray[np.int64] | None:
        """[n] the student's id → the teacher's; None where it keeps all. Made by the tokenizer stage."""
        if not self.trims:
            return None
        return np.array(read_json(self.run.path / "tokenizer" / KEPT), dtype=np.int64)

    @cached_property
    def tokenizer(self) -> LoadedTokenizer:
        """The student's tokenizer. Made by the tokenizer stage."""
        backend = Tokenizer.from_file(str(self.run.path / "tokenizer" / "tokenizer.json"))
        special_ids = dict(self.original.special_ids)
        if self.kept is not None:
            new = {int(old): place for place, old in enumerate(self.kept)}
            special_ids = {role: new[old] for role, old in special_ids.items()}
        return LoadedTokenizer("student", backend, special_ids, self.original.max_length)

    @property
    def trained_tokenizer(self) -> LoadedTokenizer:
        """The tokenizer of training: the student's, unless pieces are dropped after training."""
        return self.original if self.recipe.trim.when == "after" else self.tokenizer

    @cached_property
    def adapting(self) -> Arguments | None:
        """The arguments of the teacher's own training, checked; None if it stays as it is."""
        return adapting_arguments(self.recipe)

    @cached_property
    def weights(self) -> str:
        """The fingerprint of the weights of the recipe's teacher."""
        return weights_fingerprint(self.recipe.teacher.model, revision=self.recipe.teacher.revision)

    @property
    def teaching_weights(self) -> str:
        """What identifies the weights that teach: the adapted teacher's fingerprint, or the teacher's."""
        return self.weights if self.adapted is None else self.adapted.fingerprint


def adapting_arguments(recipe: ExtractRecipe) -> Arguments | None:
    """The arguments of the teacher's own training; RecipeError names `adapt` or `training`."""
    given = recipe.adapting
    if given is None:
        return None
    return check_arguments(given, lambda name: "adapt" if name in (recipe.adapt or {}) else "training")


def check_length(recipe: ExtractRecipe, original: LoadedTokenizer) -> None:
    """Raise RecipeError for a teacher that cannot take the recipe's sequences."""
    if original.max_length < recipe.corpora.max_length:
        raise RecipeError(
            "corpora.max_length",
            recipe.corpora.max_length,
            f"the teacher takes at most {original.max_length} tokens",
            f"set corpora.max_length to {original.max_length} or less",
        )


def prepare(recipe: ExtractRecipe, run: Run, command: Command) -> Extract:
    """Load the teacher's tokenizer and configuration; check all that needs neither weights nor text."""
    original, config = teacher_tokenizer(recipe), teacher_config(recipe)
    check_length(recipe, original)
    if recipe.trim.when != "none":
        select(original, {}, **trim_choice(recipe), fixed_id=config.pad_token_id, fields=TRIM_FIELDS)
    arguments = check_arguments(recipe.training)
    state = begin(recipe, run, arguments, original, config)
    training_arguments(arguments, run.path / "student" / "checkpoints", seed=recipe.seed)
    if state.adapting is not None:
        training_arguments(state.adapting, run.path / "teacher" / "checkpoints", seed=recipe.seed)
    return state


def begin(
    recipe: ExtractRecipe, run: Run, arguments: Arguments, original: LoadedTokenizer, config: PreTrainedConfig
) -> Extract:
    """The state of an extraction, its student's configuration and its losses checked."""
    depth, layers = choose_layers(recipe.student.init, recipe.student.num_layers, config.num_hidden_layers)
    state = Extract(recipe, run, arguments, original, depth, layers)
    student = resolve_student(state, config, original)
    given = any(size is not None for size in recipe.student.widths.values())
    state.narrows = given and layers is not None and is_narrower(student, config)
    check_extraction(student, config, layers, first_parts(student, config) if state.narrows else None)
    check_losses(recipe, student, config)
    return state


def teacher_tokenizer(recipe: ExtractRecipe) -> LoadedTokenizer:
    """The teacher's tokenizer, checked."""
    teacher = recipe.teacher
    return load_tokenizer(
        teacher.model, tokenizer=teacher.tokenizer, revision=teacher.revision, field="teacher"
    )


def teacher_config(recipe: ExtractRecipe) -> PreTrainedConfig:
    """The teacher's configuration; ModelError for an architecture that no student can be extracted from."""
    config = model_config(recipe.teacher.model, revision=recipe.teacher.revision, field="teacher")
    check_extractable(config, recipe.teacher.model)
    return config


def resolve_student(
    state: Extract, teacher: PreTrainedConfig, tokenizer: LoadedTokenizer
) -> PreTrainedConfig:
    """The student's configuration, from the teacher's and the tokenizer of training."""
    recipe = state.recipe
    given = recipe.student
    widths = width_fields(teacher, given.widths, given.config, copied=state.layers is not None)
    return extracted_config(
        teacher,
        given.config | widths,
        num_layers=state.depth,
        layers=state.layers,
        special_ids=tokenizer.special_ids,
        max_length=recipe.corpora.max_length,
    )


def check_losses(recipe: ExtractRecipe, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Raise UserError for a loss that these two configurations do not allow."""
    losses = recipe.losses
    # A narrower student of the teacher's layers is compared in the dimensions that it has kept.
    random = recipe.student.init == "random"
    if random and losses.cosine.highest and student.hidden_size != teacher.hidden_size:
        raise RecipeError(
            "losses.cosine",
            losses.cosine.highest,
            f"the student's hidden size is {student.hidden_size} and the teacher's {teacher.hidden_size}",
            "set losses.cosine: 0 (losses.relation compares models of any width), or leave hidden_size as "
            "the teacher's",
        )
    if not losses.relation.highest:
        return
    heads = losses.relation_heads or teacher.num_attention_heads
    for name, config in (("student", student), ("teacher", teacher)):
        if config.hidden_size % heads:
            raise RecipeError(
                "losses.relation_heads",
                heads,
                f"does not divide the {name}'s hidden size {config.hidden_size}",
                "give a number that divides both",
            )
        layer_list(build_student(config, seed=0, device="meta"))


def trim_choice(recipe: ExtractRecipe) -> Json:
    """The arguments of `select`."""
    return {"min_document_share": recipe.trim.min_document_share, "size": recipe.trim.size}


def load_teacher(recipe: ExtractRecipe) -> PreTrainedModel:
    """The teacher, with all its pieces, in float32."""
    teacher = recipe.teacher
    return load_masked_lm(
        teacher.model, revision=teacher.revision, allow_pickle=teacher.allow_pickle, field="teacher"
    )
