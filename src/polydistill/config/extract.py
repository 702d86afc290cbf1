"""The recipe `extract`: every setting with its default and meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from polydistill.config.scoring import Scoring, TextScoring
from polydistill.config.settings import Name, Settings, Share, TextName
from polydistill.config.shared import (
    TAIL,
    Arguments,
    LossWeight,
    Source,
    Sources,
    Tail,
    TaughtMasking,
    Teacher,
    TextRecipe,
    as_model,
)
from polydistill.config.start import TaughtStart


def _as_weight(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"first": value, "schedule": "constant"}
    if isinstance(value, dict | LossWeight):
        return value
    raise ValueError("neither a number nor `{first, last, schedule}`")


ScheduledWeight = Annotated[LossWeight, BeforeValidator(_as_weight)]


# Better than a constant weight on two of three languages, level on the third: docs/results/extract.md.
def _fading() -> LossWeight:
    return LossWeight(first=5.0, last=0.0, schedule="linear")


def _constant(weight: float) -> Callable[[], LossWeight]:
    return lambda: LossWeight(first=weight, last=None, schedule="constant")


# The only values with stored predictions: see `Losses.predictions`.
STORED = {"cosine": 0, "relation": 0, "logits": 0, "temperature": 1, "positions": "masked"}


class Losses(Settings):
    """The student's loss: a weighted sum; each weight is a number or `{first, last, schedule}`."""

    predictions: Literal["live", "stored"] = Field(
        "live",
        description="`live`: the teacher runs beside the student, on new masks in every epoch. `stored`: it "
        "scores the text once, as in a merge, and the most probable pieces of every masked token are kept "
        "(`scoring`), with the same masks in every epoch. They have neither hidden states nor logits: "
        "`cosine`, `relation` and `logits` are fixed to 0, `temperature` to 1, `positions` to masked.",
    )
    tail: Tail = Field("bucket", description=f"With stored predictions. {TAIL}")
    kd: ScheduledWeight = Field(
        default_factory=_fading,
        description="Weight of the teacher's predictions: temperature² times KL(teacher ‖ student), both "
        "softmaxes at that temperature, mean over positions. `5` is constant, as in the paper.",
    )
    mlm: ScheduledWeight = Field(
        default_factory=_constant(2.0),
        description="Weight of the text's own tokens: cross-entropy, mean over masked tokens.",
    )
    cosine: ScheduledWeight = Field(
        default_factory=_constant(1.0),
        description="Weight of 1 - cosine between the last hidden states of student and teacher, mean over "
        "attended tokens; both must have the same width.",
    )
    relation: ScheduledWeight = Field(
        default_factory=_constant(0.0),
        description="Weight of MiniLMv2's loss on the relations between the last layer's queries, keys and "
        "values; widths and numbers of heads may differ.",
    )
    logits: ScheduledWeight = Field(
        default_factory=_constant(0.0),
        description="Weight of the mean squared difference of the student's and the teacher's logits, mean "
        "over positions. Both are centred first, for a softmax does not change when all logits shift. "
        "Gurgurov et al. 2025 give it 0.5.",
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        2.0, description="Temperature of the teacher's predictions."
    )
    positions: Literal["attended", "masked"] = Field(
        "attended",
        description="Where the student learns the teacher's predictions and logits: at all tokens of a text, "
        "special ones included (as in DistilBERT's code, the paper's base), or only at masked tokens.",
    )
    relation_heads: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Relation heads of MiniLMv2's loss, which must divide both widths; empty: the teacher's "
        "number of attention heads.",
    )

    @model_validator(mode="before")
    @classmethod
    def _stored(cls, values: object) -> object:
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
        weights = self.kd, self.mlm, self.cosine, self.relation, self.logits
        if not any(weight.highest for weight in weights):
            raise ValueError(
                "kd, mlm, cosine, relation and logits are all 0, so there is nothing to learn; give one a "
                "weight"
            )
        return self


Init = Literal["stride", "distilbert", "bottom", "top", "random"]


def _as_init(value: object) -> object:
    if isinstance(value, list):
        if not value or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in value):
            raise ValueError("not numbers of the teacher's layers, from 0; use, for example, [0, 2, 4]")
        repeated = next((index for index in value if value.count(index) > 1), None)
        if repeated is not None:
            raise ValueError(f"layer {repeated} is listed twice; list it once")
    elif value not in get_args(Init):
        raise ValueError(f"neither {', '.join(get_args(Init))} nor a list of the teacher's layers, from 0")
    return value


Size = Annotated[int, Field(ge=1)]
WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads")


class ExtractedStudent(Settings):
    """The student: the teacher's architecture with fewer layers, and narrower ones if asked for."""

    num_layers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Layers of the student; empty: half the teacher's, or as many as `init` lists."
    )
    init: Annotated[Init | list[int], BeforeValidator(_as_init)] = Field(
        "stride",
        description="Which of the teacher's layers the student starts from. `stride`: evenly spaced from "
        "the first (0 2 4 6 8 10 of 12); `distilbert`: from the first to the last (0 2 4 7 9 11); `bottom`, "
        "`top`; or a list of layer numbers, from 0. Embeddings and MLM head are copied too. `random`: no "
        "weight is copied.",
    )
    hidden_size: Size | None = Field(
        None,
        description="Width of the student: a multiple of the size of the teacher's heads, which are kept "
        "whole. It keeps the dimensions that matter most to the teacher's loss on the text, by weight times "
        "gradient. Empty: the teacher's, or `num_attention_heads` times the size of a head. Widths are "
        "narrowed in BERT, RoBERTa, XLM-R, CamemBERT, DistilBERT and ModernBERT; `init: random` sets any.",
    )
    intermediate_size: Size | None = Field(
        None, description="Feed-forward units of each layer, those that matter most; empty: the teacher's."
    )
    num_attention_heads: Size | None = Field(
        None,
        description="Attention heads of each layer, those that matter most; empty: the teacher's, or as many "
        "as `hidden_size` holds.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Configuration fields that differ from the teacher's, such as dropout; others that "
        "change the shape of a weight need `init: random`.",
    )
    start: TaughtStart = Field(
        default_factory=TaughtStart, description="With `init: random`: weights before training."
    )

    @property
    def widths(self) -> dict[str, int | None]:
        """The widths by name; None: not given."""
        return {name: getattr(self, name) for name in WIDTHS}

    @model_validator(mode="after")
    def _layers_agree(self) -> ExtractedStudent:
        if isinstance(self.init, list) and self.num_layers not in (None, len(self.init)):
            raise ValueError(
                f"num_layers {self.num_layers}: init lists {len(self.init)} layers; leave num_layers out"
            )
        return self


class Trim(Settings):
    """The student's vocabulary: the pieces that the language's text uses."""

    when: Literal["before", "after", "none"] = Field(
        "before",
        description="Trim the vocabulary before training (faster: student and teacher predict only the kept "
        "pieces), after it (the paper), or not at all.",
    )
    min_document_share: Annotated[Share, Field(gt=0)] | None = Field(
        None,
        description="Keep pieces in at least this share of the text's lines; empty, without `size`: in one "
        "line. Special tokens and single characters are always kept.",
    )
    size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Keep at most this many pieces, the most frequent."
    )

    @model_validator(mode="after")
    def _one_choice(self) -> Trim:
        if self.size is not None and self.min_document_share is not None:
            raise ValueError(
                f"size {self.size}: min_document_share {self.min_document_share} is set too; set only one of "
                "the two"
            )
        return self


class Cost(Settings):
    """The cost of serving teacher and student, measured in fresh processes that take turns."""

    rounds: int = Field(
        3, ge=0, description="Processes per figure, which is their median; 0: do not measure."
    )
    calls: int = Field(5, ge=1, description="Timed passes per process.")
    shapes: list[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]] = Field(
        [(32, 512), (1, 128)],
        min_length=1,
        description="Timed batches, as (texts, tokens); a model with a shorter maximum gets its maximum. By "
        "default the paper's table 3 and a typical request to a service.",
    )


# The learning rate of a teacher's further training, TrainingArguments' own default. The student's is ten
# times as high: it repairs layers that were put together anew, and would make a whole model forget.
ADAPT_RATE = 5e-5


class ExtractRecipe(TextRecipe):
    """One multilingual teacher in, one small monolingual student out (Eliquare, 2022)."""

    recipe: Literal["extract"] = "extract"
    teacher: Annotated[Teacher, BeforeValidator(as_model)] = Field(
        description="The multilingual model; a plain string is short for `model`."
    )
    language: Name = Field(description="The student's language.")
    text: Sources = Field(description="One or more sources of text in the language.")
    adapt: Arguments | None = Field(
        None,
        description="Train the teacher on the text by MLM before it teaches (Gurgurov et al. 2025): "
        "arguments of `transformers.TrainingArguments`, such as `{max_steps: 2000}`. Those that are left out "
        f"are the student's (`training`), but for a learning rate of {ADAPT_RATE:g}. Empty: the teacher "
        "stays as it is.",
    )
    evaluation_texts: dict[TextName, Sources] = Field(
        default_factory=dict, description="Further evaluation texts by name, such as other domains."
    )
    student: ExtractedStudent = Field(default_factory=ExtractedStudent)
    losses: Losses = Field(default_factory=Losses)
    masking: TaughtMasking = Field(default_factory=TaughtMasking)
    scoring: TextScoring = Field(
        default_factory=TextScoring,
        description="How predictions are stored, with `losses.predictions: stored`.",
    )
    cost: Cost = Field(default_factory=Cost)
    trim: Trim = Field(default_factory=Trim)

    @property
    def texts(self) -> dict[str, list[Source]]:
        """Field of the recipe → the sources of training text."""
        return {"text": self.text}

    @property
    def adapting(self) -> Arguments | None:
        """The arguments of the teacher's own training, unchecked; None if it stays as it is."""
        if self.adapt is None:
            return None
        return self.training | {"learning_rate": ADAPT_RATE} | self.adapt

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
        """How the teacher's predictions are stored; None with a live teacher."""
        return self.scoring if self.losses.predictions == "stored" else None
