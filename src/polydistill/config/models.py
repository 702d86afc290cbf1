"""The recipe: every setting that a run has, with its default and what it means.

The descriptions below are the recipe reference (`docs/recipes.md` is generated from them).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import regex
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from polydistill.config.scoring import Scoring
from polydistill.config.settings import Line, Name, Settings, Share, TextName, check_names


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _as_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


# What becomes of the probability outside the stored pieces: see `losses.targets.soft_targets`.
Tail = Literal["renormalise", "bucket", "raw", "gold"]


class Source(Settings):
    """Where text comes from. A plain string stands for `path`."""

    path: str | None = Field(
        None,
        description="A file, a folder or a glob: .txt, .jsonl or .parquet, text and JSONL also as .gz, .xz or .zst.",
    )
    dataset: str | None = Field(None, description="A data set that `datasets` loads, by name or local path.")
    config: str | None = Field(None, description="The data set's configuration, such as `20231101.sw`.")
    split: str = Field("train", description="The data set's split.")
    field: str = Field("text", description="The field that holds the text, in JSONL, Parquet and data sets.")
    documents: Literal["blocks", "lines", "blank_lines"] = Field(
        "blocks",
        description="What a document is in a text file. `blocks`: the file has none, so blocks of consecutive "
        "lines stand for them; `lines`: every line is one; `blank_lines`: blank lines part them.",
    )
    first_line: int = Field(1, ge=1, description="Text files: the first line to read, counted from 1.")
    num_lines: int | None = Field(None, ge=1, description="Text files: how many lines to read.")
    max_characters: int | None = Field(None, ge=1, description="Stop reading after so many characters.")

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either `path` or `dataset`")
        return self


Sources = Annotated[list[Annotated[Source, BeforeValidator(_as_source)]], BeforeValidator(_as_list)]


class Teacher(Settings):
    """A pre-trained masked language model. A plain string stands for `model`."""

    model: str = Field(description="A folder, or a model's name on the Hugging Face hub.")
    tokenizer: str | None = Field(None, description="Where its tokenizer is, if not with the model.")
    revision: str | None = Field(None, description="The hub's revision: a branch, a tag or a commit.")
    allow_pickle: bool = Field(
        False, description="Accept weights that are only there as a pickle (read with `weights_only=True`)."
    )


class Language(Settings):
    """One language of the student."""

    text: Sources = Field(description="One or more sources of text.")
    teachers: Annotated[list[Name], BeforeValidator(_as_list)] = Field(
        min_length=1, description="The teachers that know this language, by their names in `teachers`."
    )
    use: str = Field(
        "all",
        description="Which teachers' copies of an example to train on: `all`, `best` (the copy with the lowest "
        "teacher loss) or one teacher's name.",
    )
    labels: Literal["both", "soft", "gold"] | None = Field(
        None,
        description="What this language is learned from, where that is not `distillation.labels`: `gold` for one whose "
        "teacher the student starts from and should not be held to.",
    )
    evaluation: dict[TextName, Sources] = Field(
        default_factory=dict, description="Further evaluation texts, such as other domains, by name."
    )


class PretrainLanguage(Settings):
    """One language of a model that is pre-trained from text."""

    text: Sources = Field(description="One or more sources of text.")
    evaluation: dict[TextName, Sources] = Field(
        default_factory=dict, description="Further evaluation texts, by name."
    )


class Corpora(Settings):
    """How text becomes examples."""

    max_length: int = Field(128, ge=8, description="Length of a sequence in tokens, special tokens included.")
    min_characters: int = Field(2, ge=1, description="A line with fewer characters is dropped.")
    held_out_share: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.02, description="Share of documents (or blocks of lines) kept apart for evaluation."
    )
    block_lines: int = Field(
        64, ge=1, description="Mean number of lines of a block, for files without documents."
    )
    smoothing_alpha: Share = Field(
        0.7, description="Languages are drawn with probability proportional to (number of examples) ** alpha."
    )


class Masking(Settings):
    """Which positions are masked."""

    unit: Literal["words", "tokens"] = Field(
        "words", description="Mask whole words (the same words in every copy of an example), or tokens."
    )
    probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="Share of units that are masked."
    )
    mask_share: Share = Field(0.8, description="Share of masked units that become the mask token.")
    random_share: Share = Field(0.1, description="Share of masked units that become random tokens.")

    @model_validator(mode="after")
    def _shares(self) -> Masking:
        if self.mask_share + self.random_share > 1:
            raise ValueError("mask_share + random_share is above 1")
        return self


class Distillation(Settings):
    """What the student learns from."""

    labels: Literal["both", "soft", "gold"] = Field(
        "both", description="Teachers' predictions and the text's own tokens, or one of them."
    )
    teacher_weight: Share = Field(
        1.0, description="Weight of the teachers' labels at the first step (lambda)."
    )
    final_teacher_weight: Share = Field(0.0, description="Weight of the teachers' labels at the last step.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How lambda goes from the first to the last; `constant` keeps the first."
    )
    annealing_share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of the steps in which lambda reaches its last value, which it keeps then."
    )
    tail: Tail = Field(
        "renormalise",
        description="What becomes of the probability outside the stored top k. `renormalise`: the k are scaled "
        "to sum to 1 (the paper); `bucket`: one extra class stands for all other pieces; `raw`: left out; "
        "`gold`: given to the text's own token.",
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0,
        description="1, the only value: a store lacks the logits outside its k, which a softmax at another temperature "
        "needs. Live teachers of `extract` and `balance` take others.",
    )
    best_by: Literal["character", "token"] | None = Field(
        None,
        description="With `use: best`, compare teachers by their loss per masked character, or per masked token (the "
        "paper), which favours tokenizers that cut words into more pieces. Empty: `character`, or `token` with "
        "`masking.unit: tokens`.",
    )

    @field_validator("temperature")
    @classmethod
    def _at_one(cls, value: float) -> float:
        if value != 1:
            raise ValueError(
                f"temperature {value:g}: stored predictions are learned at 1, for a softmax at another temperature "
                "needs the logits of all pieces; leave it out"
            )
        return value


class TokenizerSettings(Settings):
    """The union tokenizer's normalisation."""

    lowercase: bool | None = Field(None, description="Lower-case text; empty: if every teacher does.")
    strip_accents: bool | None = Field(None, description="Strip accents; empty: if every teacher does.")


# The architecture of a student that nothing else is said of.
MODEL_TYPE = "bert"


class Student(Settings):
    """The model that is trained."""

    model_type: str | None = Field(
        None,
        description="Any architecture that `AutoModelForMaskedLM` knows; empty: `bert`, or with `init: teachers` that of "
        "the teacher that the encoder comes from.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="The architecture's own configuration fields, such as `hidden_size`. With `init: teachers`, "
        "what is not said here is taken from the teacher that the encoder comes from.",
    )
    init: Literal["random", "teachers"] = Field(
        "random", description="Random weights as in the paper, or weights from the teachers."
    )
    encoder_from: Name | None = Field(
        None, description="With `init: teachers`: whose encoder is copied; empty: the first teacher."
    )
    row_map: Literal["orthogonal", "least_squares", "mean"] = Field(
        "least_squares",
        description="With `init: teachers`: how other teachers' embedding rows come into the encoder's space. A "
        "map fitted on shared pieces, or random rows around the mean.",
    )
    tokenizer: TokenizerSettings = Field(default_factory=TokenizerSettings)


class Model(Settings):
    """The model that is pre-trained."""

    model_type: str = Field("bert", description="Any architecture that `AutoModelForMaskedLM` knows.")
    config: dict[str, Any] = Field(
        default_factory=dict, description="The architecture's own configuration fields."
    )


def as_script(name: str) -> str:
    """A script's name, if Unicode has one of that name; ValueError otherwise."""
    try:
        regex.compile(rf"\p{{Script={name}}}")
    except regex.error:
        raise ValueError(
            f"{name!r}: Unicode has no script of that name; write, say, Latin, Cyrillic, Greek"
        ) from None
    return name


class WordPiece(Settings):
    """The WordPiece vocabulary that is trained on the text."""

    size: int = Field(30_000, ge=100, description="Number of pieces.")
    lowercase: bool = Field(True, description="Lower-case text.")
    strip_accents: bool | list[Annotated[str, AfterValidator(as_script)]] | None = Field(
        None,
        description="Strip accents; empty: as `lowercase`, as BERT does. Or a list of the scripts where they are stripped, "
        "such as `[Latin, Greek]`: elsewhere marks are vowels (Devanagari) or a letter's parts (Hangul).",
    )
    min_frequency: int = Field(2, ge=1, description="A piece must occur so often.")
    limit_alphabet: int = Field(6000, ge=10, description="Most distinct characters.")


class Evaluation(Settings):
    """What is measured on held-out text."""

    max_examples: int = Field(1000, ge=1, description="Most held-out examples a language and text.")
    batch_tokens: int = Field(4096, ge=64, description="Most tokens in a batch, padding included.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="`auto`: bfloat16 where the processor computes in it; teachers and student alike."
    )
    num_samples: int = Field(3, ge=0, description="Masked sentences a language that the report shows.")


class Card(Settings):
    """What the model card says that no run can know."""

    license: Line | None = Field(
        None,
        description="The licence that you publish the model under, by the hub's name, such as `cc-by-sa-4.0`.",
    )
    datasets: list[Line] = Field(
        default_factory=list, description="Names of the training text's data sets, as the hub has them."
    )


class Recipe(Settings):
    """What every recipe has."""

    name: Name = Field(description="The run's name.")
    output: str = Field("", description="The run's folder; empty: `runs/<name>`.")
    reuse: list[str] = Field(
        default_factory=list,
        description="Folders of other runs whose corpora, stores and student are taken where they are what this run needs.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of everything that is random.")
    corpora: Corpora = Field(default_factory=Corpora)
    masking: Masking = Field(default_factory=Masking)
    training: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of `transformers.TrainingArguments`, by their own names.",
    )
    evaluation: Evaluation = Field(default_factory=Evaluation)
    card: Card = Field(default_factory=Card)


# Names that are keys beside those of teachers: in `use`, among the results' models and tokenizers, and in ranks.npz.
TEACHERS_RESERVED = {
    "all": "a choice of teachers in `use`",
    "best": "a choice of teachers in `use`",
    "student": "the student in the results",
    "union": "the union tokenizer in the results",
    "counts": "the number of masked tokens in the results",
}


class MergeRecipe(Recipe):
    """Several teachers in, one multilingual student out (MergeDistill, Khanuja et al. 2021)."""

    recipe: Literal["merge"] = "merge"
    teachers: dict[
        Name, Annotated[Teacher, BeforeValidator(lambda v: {"model": v} if isinstance(v, str) else v)]
    ]
    languages: dict[Name, Language] = Field(min_length=1)
    scoring: Scoring = Field(default_factory=Scoring)
    distillation: Distillation = Field(default_factory=Distillation)
    student: Student = Field(default_factory=Student)

    @model_validator(mode="after")
    def _names_exist(self) -> MergeRecipe:
        known = ", ".join(self.teachers)
        check_names(self.teachers, TEACHERS_RESERVED, "teachers")
        if self.distillation.best_by == "character" and self.masking.unit == "tokens":
            raise ValueError(
                "distillation.best_by 'character': copies mask the same characters only with masking.unit: words; "
                "set that, or best_by: token"
            )
        for language, settings in self.languages.items():
            for index, teacher in enumerate(settings.teachers):
                if teacher in settings.teachers[:index]:
                    raise ValueError(
                        f"languages.{language}.teachers[{index}] {teacher!r}: stands twice; name it once"
                    )
                if teacher not in self.teachers:
                    raise ValueError(
                        f"languages.{language}.teachers[{index}] {teacher!r}: no teacher of that name; "
                        f"the recipe defines {known}"
                    )
            if settings.use not in ("all", "best", *settings.teachers):
                raise ValueError(
                    f"languages.{language}.use {settings.use!r}: neither `all`, `best` nor a teacher of this "
                    f"language; it has {', '.join(settings.teachers)}"
                )
        if self.student.encoder_from is not None and self.student.encoder_from not in self.teachers:
            raise ValueError(
                f"student.encoder_from {self.student.encoder_from!r}: no teacher of that name; "
                f"the recipe defines {known}"
            )
        return self

    @property
    def compares_characters(self) -> bool:
        """Whether `use: best` compares teachers by loss per masked character rather than per masked token."""
        by = self.distillation.best_by
        return by == "character" or (by is None and self.masking.unit == "words")


class PretrainRecipe(Recipe):
    """Text in, one masked language model with its own WordPiece out."""

    recipe: Literal["pretrain"] = "pretrain"
    languages: dict[Name, PretrainLanguage] = Field(min_length=1)
    tokenizer: WordPiece = Field(default_factory=WordPiece)
    model: Model = Field(default_factory=Model)
