"""The state that the stages of an embed run share: teacher, student and test sentences, checked early."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from polydistill.config.embed import EmbedRecipe
from polydistill.config.shared import Arguments
from polydistill.corpora.sentences import check_file
from polydistill.corpora.sources import check_sources
from polydistill.disk import Json
from polydistill.errors import ModelError, RecipeError
from polydistill.models.memory import keep_freed_memory
from polydistill.models.precision import device
from polydistill.models.sentence_files import MOST_TOKENS, SentenceFiles, read_sentence_files
from polydistill.models.sentences import check_encoder, load_sentence_encoder, sentence_ids
from polydistill.pipelines.pipeline import Command
from polydistill.pipelines.run_folder import Artefact, Run
from polydistill.tasks.sentences import MeasuredSentences, measured_identity, read_measured
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer
from polydistill.training.arguments import check_arguments, training_arguments

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from polydistill.models.sentences import SentenceEncoder

# A sentence encoder needs no other special token than the one that pads.
ROLES = ("pad",)


@dataclass
class SentenceModel:
    """A sentence encoder that is read from a folder, loaded when it is first asked.

    width       numbers of its hidden states
    max_length  tokens of a sentence
    field       of it in the recipe
    """

    files: SentenceFiles
    tokenizer: LoadedTokenizer
    width: int
    max_length: int
    field: str
    allow_pickle: bool = False

    def load(self) -> SentenceEncoder:
        """A fresh copy of the model, where it computes."""
        keep_freed_memory()
        return load_sentence_encoder(
            self.files, max_length=self.max_length, allow_pickle=self.allow_pickle, field=self.field
        ).to(device())

    @cached_property
    def model(self) -> SentenceEncoder:
        """The model as its folder has it."""
        return self.load()

    @property
    def pad_id(self) -> int:
        """The id that pads its batches."""
        return self.tokenizer.special_ids["pad"]

    def ids(self, texts: list[str]) -> list[npt.NDArray[np.int32]]:
        """[L] ids of each text."""
        return sentence_ids(
            self.tokenizer,
            texts,
            max_length=self.max_length,
            prompt=self.files.prompt,
            lowercase=self.files.lowercase,
        )

    def identity(self) -> Json:
        """What its vectors depend on."""
        return {
            "files": self.files.identity(),
            "tokenizer": self.tokenizer.fingerprint,
            "max_length": self.max_length,
        }


@dataclass
class Embedding:
    """The state that the stages share.

    arguments           of TrainingArguments, checked
    sentences, vectors  language → its artefact, from their stages
    """

    recipe: EmbedRecipe
    run: Run
    arguments: Arguments
    teacher: SentenceModel
    student: SentenceModel
    measured: MeasuredSentences
    measured_on: Json
    sentences: dict[str, Artefact] = field(default_factory=dict)
    vectors: dict[str, Artefact] = field(default_factory=dict)


def check(recipe: EmbedRecipe, _: Command | None = None) -> None:
    """Raise UserError for wrong arguments of training and for missing files; loads no model."""
    check_arguments(recipe.training)
    check_files(recipe)


def check_files(recipe: EmbedRecipe) -> None:
    """Raise CorpusError for a missing file of text, translations or test sentences."""
    for place, sources in recipe.texts.items():
        check_sources(sources, place)
    for name, language in recipe.languages.items():
        for index, path in enumerate(language.translations):
            check_file(Path(path).expanduser(), f"languages.{name}.translations[{index}]")
    measured_identity(recipe)


def prepare(recipe: EmbedRecipe, run: Run, _: Command) -> Embedding:
    """Read the test sentences and the models' settings, and check that they fit together."""
    arguments = check_arguments(recipe.training)
    training_arguments(arguments, run.path / "student" / "checkpoints", seed=recipe.seed)
    return Embedding(
        recipe,
        run,
        arguments,
        open_teacher(recipe),
        open_student(recipe),
        read_measured(recipe),
        measured_identity(recipe),
    )


def open_teacher(recipe: EmbedRecipe) -> SentenceModel:
    """The teacher's settings and tokenizer; UserError for what is no sentence encoder, or reads less."""
    asked = recipe.teacher
    files = read_sentence_files(asked.model, revision=asked.revision, pooling=asked.pooling, field="teacher")
    if asked.prompt is not None:
        files = replace(files, prompt=asked.prompt)
    config = check_encoder(files, "teacher")
    tokenizer = load_tokenizer(
        files.encoder, tokenizer=asked.tokenizer, revision=asked.revision, field="teacher", roles=ROLES
    )
    longest = tokenizer.max_length
    if asked.max_length is not None and asked.max_length > longest:
        raise RecipeError(
            "teacher.max_length",
            asked.max_length,
            f"the teacher reads at most {longest} tokens",
            f"give at most {longest}, or leave it out",
        )
    length = asked.max_length or min(longest, files.max_length or MOST_TOKENS)
    return SentenceModel(files, tokenizer, config.hidden_size, length, "teacher", asked.allow_pickle)


def open_student(recipe: EmbedRecipe) -> SentenceModel:
    """The student's start and tokenizer; UserError for what is no encoder, or reads less than is asked.

    The layers after the pooling of a sentence-transformers folder are not taken: `projection` makes its own.
    """
    asked = recipe.student
    files = read_sentence_files(asked.model, revision=asked.revision, pooling=asked.pooling, field="student")
    if files.lowercase:
        raise ModelError(
            "student",
            asked.model,
            "lower-cases text outside of its tokenizer (do_lower_case)",
            "set do_lower_case: false in its sentence_bert_config.json, or give another encoder",
        )
    config = check_encoder(files, "student")
    tokenizer = load_tokenizer(files.encoder, revision=asked.revision, field="student", roles=ROLES)
    length = recipe.sentences.max_length
    if length > tokenizer.max_length:
        raise RecipeError(
            "sentences.max_length",
            length,
            f"the student reads at most {tokenizer.max_length} tokens",
            f"give at most {tokenizer.max_length}",
        )
    files = replace(files, tail=(), prompt="")
    return SentenceModel(files, tokenizer, config.hidden_size, length, "student", asked.allow_pickle)


def teacher_width(teacher: SentenceModel) -> int:
    """Numbers of a teacher's vector; reads no weights unless it has Dense modules."""
    return teacher.model.width if any(teacher.files.tail) else teacher.width


def needs_projection(recipe: EmbedRecipe, student: SentenceModel, width: int) -> bool:
    """Whether a linear layer follows the student's pooling; RecipeError if it must not and has to.

    width  of the teacher's vectors
    """
    asked = recipe.student.projection
    if asked is False and student.width != width:
        raise RecipeError(
            "student.projection",
            False,
            f"the student's vectors have {student.width} numbers and the teacher's {width}",
            "leave it out: a linear layer then leads from one to the other",
        )
    return student.width != width if asked is None else asked
