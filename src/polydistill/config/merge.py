"""The recipe `merge`: every setting with its default and meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from polydistill.config.scoring import MergeScoring, Scoring
from polydistill.config.settings import Name, Settings, TextName, check_names
from polydistill.config.shared import (
    Distillation,
    Source,
    Sources,
    TaughtMasking,
    Teacher,
    TextRecipe,
    as_list,
    as_model,
    as_script,
)
from polydistill.config.start import TaughtStart


class Language(Settings):
    """One language of the student."""

    text: Sources = Field(description="One or more sources of text.")
    teachers: Annotated[list[Name], BeforeValidator(as_list)] = Field(
        min_length=1, description="The teachers of this language, by their names in `teachers`."
    )
    use: str = Field(
        "all",
        description="Which teachers' copies of an example to train on: `all`, `best` (the copy with the "
        "lowest teacher loss) or one teacher's name.",
    )
    labels: Literal["both", "soft", "gold"] | None = Field(
        None,
        description="Overrides `distillation.labels` for this language: for example `gold` if the student "
        "starts from the language's teacher and need not imitate it.",
    )
    evaluation: dict[TextName, Sources] = Field(
        default_factory=dict, description="Further evaluation texts by name, such as other domains."
    )


UNION, LEARNED = "union", "learned"


class TokenizerSettings(Settings):
    """The student's tokenizer, unless `student.vocabulary` is a folder."""

    lowercase: bool | None = Field(None, description="Lowercase text; empty: if every teacher does.")
    strip_accents: bool | list[Annotated[str, AfterValidator(as_script)]] | None = Field(
        None,
        description="Strip accents; empty: if every teacher does, and with `vocabulary: learned` in Latin, "
        "Greek and Cyrillic if text is lowercased. Or, with `vocabulary: learned`, a list of scripts.",
    )
    size: int = Field(16_000, ge=100, description="With `vocabulary: learned`: number of pieces.")
    min_document_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="With `vocabulary: union`: keep the pieces that are in at least this share of a "
        "language's training examples, and all single characters. Empty: keep all.",
    )

    @property
    def stripped(self) -> bool | None:
        """Whether a union strips accents, in all scripts."""
        return None if isinstance(self.strip_accents, list) else self.strip_accents


class Student(Settings):
    """The model that is trained."""

    model_type: str | None = Field(
        None,
        description="An architecture that `AutoModelForMaskedLM` knows; empty: `bert`, or with `init: "
        "teachers` that of the teacher whose encoder is copied.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Configuration fields of the architecture, such as `hidden_size`. With `init: "
        "teachers`, the others come from the teacher whose encoder is copied.",
    )
    init: Literal["random", "teachers"] = Field(
        "random", description="Random weights as in the paper, or weights from the teachers."
    )
    encoder_from: Name | None = Field(
        None, description="With `init: teachers`: whose encoder is copied; empty: the first teacher."
    )
    row_map: Literal["kernel", "orthogonal", "least_squares", "mean"] = Field(
        "kernel",
        description="With `init: teachers`: how other teachers' embedding rows are mapped into the "
        "encoder's space. `kernel`, `orthogonal`, `least_squares`: a map fitted on shared pieces; `mean`: "
        "random rows around the mean.",
    )
    start: TaughtStart = Field(
        default_factory=TaughtStart, description="With `init: random`: weights before training."
    )
    vocabulary: str = Field(
        UNION,
        description="`union`: all pieces of all teachers; `learned`: one WordPiece for all languages, "
        "learned from their text; or a folder with a tokenizer. Teachers' predictions are stored once, and "
        "read in any of them.",
    )
    tokenizer: TokenizerSettings = Field(default_factory=TokenizerSettings)

    @model_validator(mode="after")
    def _vocabulary(self) -> Student:
        settings = self.tokenizer
        if isinstance(settings.strip_accents, list) and self.vocabulary != LEARNED:
            raise ValueError(
                f"tokenizer.strip_accents {settings.strip_accents}: scripts are for vocabulary: learned; use "
                "true or false"
            )
        if settings.min_document_share is not None and self.vocabulary != UNION:
            raise ValueError(
                f"tokenizer.min_document_share {settings.min_document_share:g}: trims a union, and "
                f"vocabulary is {self.vocabulary}; leave it out"
            )
        return self

    @property
    def has_own_vocabulary(self) -> bool:
        """Whether the student's pieces are others than all pieces of all teachers."""
        return self.vocabulary != UNION or self.tokenizer.min_document_share is not None


# Names that are keys beside those of teachers in `use`, in the results' models and tokenizers, and in
# ranks.npz.
TEACHERS_RESERVED = {
    "all": "a choice of teachers in `use`",
    "best": "a choice of teachers in `use`",
    "student": "the student in the results",
    "union": "the union tokenizer in the results",
    "counts": "the number of masked tokens in the results",
}


class MergeRecipe(TextRecipe):
    """Several teachers in, one multilingual student out (MergeDistill, Khanuja et al. 2021)."""

    recipe: Literal["merge"] = "merge"
    teachers: dict[Name, Annotated[Teacher, BeforeValidator(as_model)]] = Field(
        description="Name → a teacher: a folder or hub name, or its settings (see Teacher)."
    )
    languages: dict[Name, Language] = Field(min_length=1, description="Language → its text and teachers.")
    masking: TaughtMasking = Field(default_factory=TaughtMasking)
    scoring: MergeScoring = Field(default_factory=MergeScoring)
    distillation: Distillation = Field(default_factory=Distillation)
    student: Student = Field(default_factory=Student)

    @model_validator(mode="after")
    def _names_exist(self) -> MergeRecipe:
        known = ", ".join(self.teachers)
        check_names(self.teachers, TEACHERS_RESERVED, "teachers")
        if self.distillation.best_by == "character" and self.masking.unit == "tokens":
            raise ValueError(
                "distillation.best_by 'character': copies mask the same characters only with masking.unit: "
                "words; set masking.unit: words, or best_by: token"
            )
        for language, settings in self.languages.items():
            for index, teacher in enumerate(settings.teachers):
                if teacher in settings.teachers[:index]:
                    raise ValueError(
                        f"languages.{language}.teachers[{index}] {teacher!r}: is listed twice; list it once"
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
    def texts(self) -> dict[str, list[Source]]:
        """Field of the recipe → the sources of training text."""
        return {f"languages.{name}.text": language.text for name, language in self.languages.items()}

    @property
    def models_read(self) -> list[str]:
        """Names and folders of the teachers."""
        return [teacher.model for teacher in self.teachers.values()]

    @property
    def models_made(self) -> list[Path]:
        """The student's folder."""
        return [self.folder / "student" / "final"]

    @property
    def stored_scoring(self) -> Scoring | None:
        """How teachers' predictions are stored."""
        return self.scoring

    @property
    def compares_characters(self) -> bool:
        """Whether `use: best` compares teachers by loss per masked character rather than per masked token."""
        by = self.distillation.best_by
        return by == "character" or (by is None and self.masking.unit == "words")
