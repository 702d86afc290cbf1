"""The recipe `extract`: every setting, with its default and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from polydistill.config.scoring import Scoring
from polydistill.config.settings import Name, Settings, Share, TextName
from polydistill.config.shared import TAIL, LossWeight, Source, Sources, Tail, Teacher, TextRecipe, as_model


def _as_weight(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"first": value, "schedule": "constant"}
    if isinstance(value, dict | LossWeight):
        return value
    raise ValueError("neither a number nor `{first, last, schedule}`")


ScheduledWeight = Annotated[LossWeight, BeforeValidator(_as_weight)]


def _constant(weight: float) -> Any:
    return lambda: LossWeight(first=weight, last=None, schedule="constant")


# What predictions that were stored can be learned by: see `Losses.predictions`.
STORED = {"cosine": 0, "relation": 0, "temperature": 1, "positions": "masked"}


class Losses(Settings):
    """What the student minimises: a weighted sum, each weight a number or `{first, last, schedule}`."""

    predictions: Literal["live", "stored"] = Field(
        "live",
        description="`live`: the teacher runs beside the student, on new masks in every epoch. `stored`: it scores the "
        "text once, as in a merge, and the most probable pieces of every masked token are kept (`scoring`), the same "
        "masks in every epoch. There are no hidden states then: `cosine` and `relation` become 0, `temperature` 1, "
        "`positions` masked, and cannot be else.",
    )
    tail: Tail = Field("bucket", description=f"With stored predictions. {TAIL}")
    kd: ScheduledWeight = Field(
        default_factory=_constant(5.0),
        description="Weight of the teacher's predictions: temperature² times KL(teacher ‖ student), both softmaxes at "
        "the temperature; a mean over positions.",
    )
    mlm: ScheduledWeight = Field(
        default_factory=_constant(2.0),
        description="Weight of the text's own tokens: cross-entropy, a mean over masked tokens.",
    )
    cosine: ScheduledWeight = Field(
        default_factory=_constant(1.0),
        description="Weight of 1 - cosine between the last hidden states of student and teacher, a mean over attended "
        "tokens; they must be of one width.",
    )
    relation: ScheduledWeight = Field(
        default_factory=_constant(0.0),
        description="Weight of MiniLMv2's loss on the relations between the last layer's queries, keys and values; "
        "needs neither equal width nor equal heads.",
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        2.0, description="Temperature of the teacher's predictions."
    )
    positions: Literal["attended", "masked"] = Field(
        "attended",
        description="Where the teacher's predictions are learned from: at all tokens of a text, special ones included "
        "(the DistilBERT code, the paper's base), or at masked tokens alone.",
    )
    relation_heads: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Relation heads of MiniLMv2's loss, which must divide both widths; empty: the teacher's number "
        "of attention heads.",
    )

    @model_validator(mode="before")
    @classmethod
    def _stored(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("predictions") != "stored":
            return values
        for name, only in STORED.items():
            given = values.get(name, only)
            constant = isinstance(given, dict) and not (given.get("first") or given.get("last"))
            if given != only and not constant:
                raise ValueError(
                    f"{name} {given!r}: with stored predictions it can only be {only}; leave it out, or set "
                    "predictions: live"
                )
        return STORED | values

    @model_validator(mode="after")
    def _something(self) -> Losses:
        if not any(weight.highest for weight in (self.kd, self.mlm, self.cosine, self.relation)):
            raise ValueError(
                "kd, mlm, cosine and relation are all 0, so there is nothing to learn; give one a weight"
            )
        return self


Init = Literal["stride", "distilbert", "bottom", "top", "random"]


def _as_init(value: Any) -> Any:
    if isinstance(value, list):
        if not value or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in value):
            raise ValueError("not numbers of the teacher's layers, from 0; write, say, [0, 2, 4]")
        repeated = next((index for index in value if value.count(index) > 1), None)
        if repeated is not None:
            raise ValueError(f"layer {repeated} stands twice; name it once")
    elif value not in get_args(Init):
        raise ValueError(f"neither {', '.join(get_args(Init))} nor a list of the teacher's layers, from 0")
    return value


class ExtractedStudent(Settings):
    """The student: the teacher's architecture with fewer layers."""

    num_layers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Layers of the student; empty: half the teacher's, or as many as `init` names."
    )
    init: Annotated[Init | list[int], BeforeValidator(_as_init)] = Field(
        "stride",
        description="Which of the teacher's layers the student's start from. `stride`: evenly spaced from the first "
        "(0 2 4 6 8 10 of 12); `distilbert`: from the first to the last (0 2 4 7 9 11); `bottom`, `top`; or a list of "
        "their numbers, from 0. Embeddings and MLM head are the teacher's too. `random`: no weight is.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="The architecture's own configuration fields where they are not the teacher's, such as dropout; "
        "fields that change a weight's shape need `init: random`.",
    )

    @model_validator(mode="after")
    def _layers_agree(self) -> ExtractedStudent:
        if isinstance(self.init, list) and self.num_layers not in (None, len(self.init)):
            raise ValueError(
                f"num_layers {self.num_layers}: init names {len(self.init)} layers; leave num_layers out"
            )
        return self


class Trim(Settings):
    """The student's vocabulary: the pieces that the language's text uses."""

    when: Literal["before", "after", "none"] = Field(
        "before",
        description="Cut the vocabulary before training (faster: student and teacher choose among the kept pieces), "
        "after it (the paper), or not at all.",
    )
    min_document_share: Annotated[Share, Field(gt=0)] | None = Field(
        None,
        description="Keep pieces in at least this share of the text's lines; empty, without `size`: in one line. "
        "Special tokens and single characters always stay.",
    )
    size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Keep so many pieces, the most frequent."
    )

    @model_validator(mode="after")
    def _one_choice(self) -> Trim:
        if self.size is not None and self.min_document_share is not None:
            raise ValueError(
                f"size {self.size}: min_document_share {self.min_document_share} is given too; give one of the two"
            )
        return self


class Cost(Settings):
    """What serving teacher and student costs, measured in fresh processes that take turns."""

    rounds: int = Field(
        3, ge=0, description="Processes for each figure, of which the median counts; 0: not measured."
    )
    calls: int = Field(5, ge=1, description="Passes that are timed in each process.")
    shapes: list[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]] = Field(
        [(32, 512), (1, 128)],
        min_length=1,
        description="Batches that are timed, as (texts, tokens); a model that takes fewer tokens gets as many as it "
        "takes. The paper's table 3, and what a service sees.",
    )


class ExtractRecipe(TextRecipe):
    """One multilingual teacher in, one small monolingual student out (Eliquare, 2022)."""

    recipe: Literal["extract"] = "extract"
    teacher: Annotated[Teacher, BeforeValidator(as_model)] = Field(
        description="The multilingual model; a plain string stands for `model`."
    )
    language: Name = Field(description="The student's language.")
    text: Sources = Field(description="One or more sources of text in the language.")
    evaluation_texts: dict[TextName, Sources] = Field(
        default_factory=dict, description="Further evaluation texts, such as other domains, by name."
    )
    student: ExtractedStudent = Field(default_factory=ExtractedStudent)
    losses: Losses = Field(default_factory=Losses)
    scoring: Scoring = Field(
        default_factory=Scoring, description="How predictions are stored, with `losses.predictions: stored`."
    )
    cost: Cost = Field(default_factory=Cost)
    trim: Trim = Field(default_factory=Trim)

    @property
    def texts(self) -> dict[str, list[Source]]:
        """Field of the recipe → the sources of text that is trained on."""
        return {"text": self.text}

    @property
    def models_read(self) -> list[str]:
        """The teacher's name or folder."""
        return [self.teacher.model]

    @property
    def models_made(self) -> list[Path]:
        """The student's folder."""
        return [self.folder / "student" / "final"]

    @property
    def stored_scoring(self) -> Scoring | None:
        """How the teacher's predictions are stored; None where the teacher is live."""
        return self.scoring if self.losses.predictions == "stored" else None
