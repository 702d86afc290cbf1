"""The recipe `balance`: every setting with its default and meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from polydistill.config.probe import Probing, TaggedData
from polydistill.config.scoring import Scoring
from polydistill.config.settings import Name, Settings, Share, TextName, check_names
from polydistill.config.shared import (
    TAIL,
    Arguments,
    Model,
    Source,
    Sources,
    Tail,
    TextRecipe,
    WordPiece,
    as_script,
)

Epochs = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BalancedLanguage(Settings):
    """One language: its text, and how much of it to use."""

    text: Sources = Field(description="One or more sources of text.")
    max_characters: int | None = Field(
        None,
        ge=1,
        description="Use a random sample of the training examples with at most this many characters; an "
        "error if the text has fewer. Empty: all of it.",
    )
    teacher: str | None = Field(
        None,
        description="The folder of an existing teacher of this language with the run's own vocabulary (see "
        "`tokenizer.vocabulary`); empty: train one.",
    )
    evaluation: dict[TextName, Sources] = Field(
        default_factory=dict, description="Further evaluation texts, by name."
    )


class SharedWordPiece(WordPiece):
    """The WordPiece vocabulary of all languages, which teachers and students share."""

    strip_accents: bool | list[Annotated[str, AfterValidator(as_script)]] | None = Field(
        ["Latin", "Greek", "Cyrillic"],
        description="Scripts whose accents are stripped: in others, marks are vowels (Devanagari, Telugu, "
        "Arabic) or parts of letters (Hangul). `true`: all; `false`: none.",
    )
    vocabulary: str | None = Field(
        None, description="A folder with a tokenizer of an earlier run, used unchanged; empty: train one."
    )


class TeacherTraining(Settings):
    """How each language's teacher is trained, on gold labels."""

    epochs: Epochs | None = Field(
        None, description="Passes over its text; empty: `training.max_steps` steps."
    )
    training: Arguments = Field(
        default_factory=dict,
        description="Arguments of `transformers.TrainingArguments` that override the recipe's.",
    )
    patience: int = Field(
        3,
        ge=0,
        description="Stop after this many measurements on held-out text without improvement, and keep the "
        "best; 0: train to the end.",
    )
    evaluations: int = Field(
        10, ge=1, description="Measurements on held-out text over the whole training, evenly spaced."
    )


class BalancedStudent(Settings):
    """One multilingual model, and what it learns from."""

    labels: Literal["soft", "gold", "both"] = Field(
        "soft", description="The teachers' predictions, the text's own tokens, or both."
    )
    teacher_weight: Share = Field(
        0.5, description="With `labels: both`: weight of the teachers' predictions; the tokens get the rest."
    )
    truncate: Literal["smallest", "none"] | Annotated[int, Field(ge=1)] = Field(
        "smallest",
        description="How much of each language's text to use: as many characters as the smallest language "
        "has, all (`none`), or at most this many characters.",
    )
    smoothing_alpha: Share | None = Field(
        None, description="Instead of `corpora.smoothing_alpha`, for this student."
    )
    predictions: Literal["live", "stored"] = Field(
        "live",
        description="`live`: the teacher of an example's language runs beside the student: exact, with new "
        "masks in every epoch. `stored`: it scores its text once, and the most probable pieces are kept "
        "(`scoring`), with the same masks in every epoch.",
    )
    tail: Tail | None = Field(
        None,
        description=f"With stored predictions of the most probable pieces; empty: `renormalise`. {TAIL} With "
        "`scoring.sampling: random` or `hybrid` there is no rest.",
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1.0,
        description="With live predictions: temperature of both softmaxes; the loss is multiplied by its "
        "square.",
    )
    epochs: Epochs | None = Field(
        None, description="Passes over its text; empty: `training.max_steps` steps."
    )
    training: Arguments = Field(
        default_factory=dict,
        description="Arguments of `transformers.TrainingArguments` that override the recipe's.",
    )

    @model_validator(mode="before")
    @classmethod
    def _tail_of_stored_ones(cls, values: object) -> object:
        """A live teacher leaves no rest: two students that differ only in the tail are the same."""
        if not isinstance(values, dict):
            return values
        tail = values.get("tail")
        if values.get("predictions") == "stored":
            return {**values, "tail": "renormalise" if tail is None else tail}
        # Invalid values are left for the field's own validation.
        return {**values, "tail": None} if tail in get_args(Tail) else values

    @model_validator(mode="after")
    def _fits(self) -> BalancedStudent:
        if self.predictions == "stored" and self.temperature != 1:
            raise ValueError(
                f"temperature {self.temperature:g}: stored predictions need temperature 1; leave it out, or "
                "set predictions: live"
            )
        return self


# The paper's three students: its own method, hard labels on all text, hard labels on the same text as its
# own.
PAPER = {
    "ours": {"labels": "soft", "truncate": "smallest"},
    "HL": {"labels": "gold", "truncate": "none"},
    "HL-balanced": {"labels": "gold", "truncate": "smallest"},
}


# Names that are keys beside those of students in ranks.npz and in figures.
STUDENTS_RESERVED = {
    "teacher": "the teachers in the results",
    "unigram": "the baseline in the results",
    "counts": "the number of masked tokens in the results",
}


class ProbeTasks(Settings):
    """Probes of teachers' and students' encoders: see `recipe: probe`."""

    tasks: dict[Literal["pos", "ner"], dict[Name, TaggedData]] = Field(
        default_factory=dict, description="The data of each task's languages."
    )
    probing: Probing = Field(default_factory=Probing)


class BalanceRecipe(TextRecipe):
    """Monolingual teachers of one vocabulary in, multilingual students out (Limisiewicz et al. 2022)."""

    recipe: Literal["balance"] = "balance"
    languages: dict[Name, BalancedLanguage] = Field(
        min_length=1, description="Language → its text, and how much of it to use."
    )
    groups: dict[Name, list[Name]] = Field(
        default_factory=dict,
        description="Averages over some languages, beside that over all, such as `low: [tr, eu]`.",
    )
    tokenizer: SharedWordPiece = Field(default_factory=SharedWordPiece)
    model: Model = Field(default_factory=Model, description="The architecture of both teachers and students.")
    teachers: TeacherTraining = Field(default_factory=TeacherTraining)
    students: dict[Name, BalancedStudent] = Field(
        default_factory=lambda: {
            name: BalancedStudent.model_validate(values) for name, values in PAPER.items()
        },
        min_length=1,
        description="The models to train and compare; by default the paper's method and its two baselines.",
    )
    scoring: Scoring = Field(
        default_factory=Scoring,
        description="How predictions are stored, for students with `predictions: stored`.",
    )
    probe: ProbeTasks = Field(default_factory=ProbeTasks)

    @model_validator(mode="after")
    def _names(self) -> BalanceRecipe:
        known = ", ".join(self.languages)
        check_names(self.groups, {"all": "all languages"}, "groups")
        check_names(self.students, STUDENTS_RESERVED, "students")
        for group, members in self.groups.items():
            if not members:
                raise ValueError(f"groups.{group}: lists no language; the recipe has {known}")
            for index, language in enumerate(members):
                if language not in self.languages:
                    raise ValueError(
                        f"groups.{group}[{index}] {language!r}: not a language of this recipe; it has {known}"
                    )
        for task, languages in self.probe.tasks.items():
            for language in languages:
                if language not in self.languages:
                    raise ValueError(
                        f"probe.tasks.{task}.{language}: not a language of this recipe; it has {known}"
                    )
        return self

    @property
    def texts(self) -> dict[str, list[Source]]:
        """Field of the recipe → the sources of training text."""
        return {f"languages.{name}.text": language.text for name, language in self.languages.items()}

    @property
    def models_read(self) -> list[str]:
        """Folders of existing teachers."""
        teachers = (language.teacher for language in self.languages.values())
        return list(dict.fromkeys(teacher for teacher in teachers if teacher is not None))

    @property
    def models_made(self) -> list[Path]:
        """Folders of the students, and of the teachers that are trained."""
        trained = [name for name, language in self.languages.items() if language.teacher is None]
        return [
            *(self.folder / "students" / name / "final" for name in self.students),
            *(self.folder / "teachers" / name / "final" for name in trained),
        ]

    @property
    def stored_scoring(self) -> Scoring | None:
        """How teachers' predictions are stored; None if no student learns from stored ones."""
        students = self.students.values()
        stored = any(student.labels != "gold" and student.predictions == "stored" for student in students)
        return self.scoring if stored else None
