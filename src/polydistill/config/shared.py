"""Settings shared by several recipes. Their descriptions form the recipe reference (docs/recipes.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import regex
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from polydistill.config.scoring import Scoring, as_address
from polydistill.config.settings import Line, Name, Settings, Share
from polydistill.config.start import Start

# Arguments of `transformers.TrainingArguments`, which Transformers checks.
Arguments = dict[str, Any]


def as_list(value: object) -> list[object]:
    """A value that may be given alone or in a list."""
    return value if isinstance(value, list) else [value]


def as_path(value: object) -> object:
    """A source's settings; a plain string is short for `path`."""
    return {"path": value} if isinstance(value, str) else value


def as_model(value: object) -> object:
    """A model's settings; a plain string is short for `model`."""
    return {"model": value} if isinstance(value, str) else value


# Treatment of the probability outside the stored pieces: see `losses.targets.soft_targets`.
Tail = Literal["renormalise", "bucket", "raw", "gold"]
TAIL = (
    "Treatment of the probability outside the stored pieces. `renormalise`: the stored ones are scaled to "
    "sum to 1 (the paper); `bucket`: one extra class for all other pieces; `raw`: left out; `gold`: assigned "
    "to the text's own token."
)


class Source(Settings):
    """A source of text. A plain string is short for `path`."""

    path: str | None = Field(
        None,
        description="A file, a folder or a glob: .txt, .jsonl or .parquet; text and JSONL also as .gz, .xz "
        "or .zst.",
    )
    dataset: str | None = Field(None, description="A data set that `datasets` loads, by name or local path.")
    config: str | None = Field(None, description="The data set's configuration, such as `20231101.sw`.")
    split: str = Field("train", description="The data set's split.")
    field: str = Field("text", description="The field with the text, in JSONL, Parquet and data sets.")
    documents: Literal["blocks", "lines", "blank_lines"] = Field(
        "blocks",
        description="The documents of a text file. `blocks`: the file has none, so blocks of consecutive "
        "lines replace them; `lines`: each line is a document; `blank_lines`: blank lines separate them.",
    )
    first_line: int = Field(1, ge=1, description="Text files: the first line to read, counted from 1.")
    num_lines: int | None = Field(None, ge=1, description="Text files: the number of lines to read.")
    max_characters: int | None = Field(None, ge=1, description="Stop reading after this many characters.")

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either `path` or `dataset`")
        return self


Sources = Annotated[list[Annotated[Source, BeforeValidator(as_path)]], BeforeValidator(as_list)]


class Teacher(Settings):
    """A pre-trained masked language model. A plain string is short for `model`."""

    model: str = Field(description="A folder, or a model's name on the Hugging Face hub.")
    tokenizer: str | None = Field(
        None, description="Folder or hub name of its tokenizer, if not the model's."
    )
    revision: str | None = Field(None, description="Revision on the hub: a branch, a tag or a commit.")
    allow_pickle: bool = Field(
        False, description="Accept weights that exist only as a pickle (read with `weights_only=True`)."
    )


class Corpora(Settings):
    """How text becomes examples."""

    max_length: int = Field(128, ge=8, description="Length of a sequence in tokens, special tokens included.")
    min_characters: int = Field(2, ge=1, description="Drop lines with fewer characters.")
    held_out_share: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.02, description="Share of documents (or blocks of lines) held out for evaluation."
    )
    block_lines: int = Field(
        64, ge=1, description="Mean number of lines of a block, for files without documents."
    )
    near_repeats: Annotated[float, Field(ge=0.3, le=0.95)] | None = Field(
        None,
        description="Drop documents (or blocks of lines) that share about this much of their sequences of "
        "five words with an earlier one, by MinHash. Held-out documents stay. Empty: only equal lines go.",
    )
    smoothing_alpha: Share = Field(
        0.7,
        description="Languages are sampled with probability proportional to (number of examples) ** alpha.",
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="Where parts of the text are prepared. `local`: processes of this machine; `ray`: tasks "
        "on a cluster. The corpora are identical, and each engine can resume what the other began.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Maximum number of processes, or tasks on Ray, of one core each. Empty: one for each "
        "core; 1 prepares text in the command's own process.",
    )
    address: Annotated[str | None, AfterValidator(as_address)] = Field(
        None,
        description="`engine: ray`: a running cluster, `auto` on one of its machines, or host:port. Empty: "
        "RAY_ADDRESS if it is set; otherwise Ray starts on this machine.",
    )

    def content(self) -> dict[str, object]:
        """What a language's examples depend on: not the mix of languages, nor where work is done."""
        return self.model_dump(mode="json", exclude={"smoothing_alpha", "engine", "workers", "address"})


class Masking(Settings):
    """Which positions are masked."""

    unit: Literal["words", "tokens"] = Field(
        "words", description="Mask whole words (the same words in every copy of an example), or tokens."
    )
    probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3,
        description="Share of masked units in training. More than the papers' 0.15 teaches more in a step.",
    )
    mask_share: Share = Field(0.8, description="Share of masked units that become the mask token.")
    random_share: Share = Field(
        0.0,
        description="Share of masked units that become random tokens. The others are kept, and predicted "
        "too. BERT's 0.1 teaches a little less in a step.",
    )

    @model_validator(mode="after")
    def _shares(self) -> Masking:
        if self.mask_share + self.random_share > 1:
            raise ValueError("mask_share + random_share is above 1")
        return self


class TaughtMasking(Masking):
    """Which positions are masked, where finished teachers predict them."""

    probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15,
        description="Share of masked units in training. Most published teachers were trained with 0.15, and "
        "some predict nothing at 0.3: `plan` measures it.",
    )
    random_share: Share = Field(
        0.1,
        description="Share of masked units that become random tokens, 0.1 as in BERT; the others are kept.",
    )


# How a weight changes during training: see `losses.schedules.scheduled_weight`.
Schedule = Literal["linear", "cosine", "constant"]
SCHEDULE = "How the weight changes from the first step to the last; `constant` keeps the first."
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LossWeight(Settings):
    """A loss's weight during training. A plain number is a constant weight."""

    first: Weight = Field(description="Weight at the first step.")
    last: Weight | None = Field(None, description="Weight at the last step; empty: the same as `first`.")
    schedule: Schedule = Field("linear", description=SCHEDULE)

    @property
    def highest(self) -> float:
        """The largest weight at any step: if it is 0, the loss is never computed."""
        if self.last is None or self.schedule == "constant":
            return self.first
        return max(self.first, self.last)


class Distillation(Settings):
    """What the student learns from."""

    labels: Literal["both", "soft", "gold"] = Field(
        "both", description="Teachers' predictions (`soft`), the text's own tokens (`gold`), or both."
    )
    teacher_weight: Share = Field(
        1.0, description="Weight of the teachers' labels at the first step (lambda)."
    )
    final_teacher_weight: Share = Field(0.0, description="Weight of the teachers' labels at the last step.")
    schedule: Schedule = Field("linear", description=SCHEDULE)
    annealing_share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of the steps after which lambda has its last value, which it then keeps."
    )
    tail: Tail = Field("renormalise", description=TAIL)
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0,
        description="Must be 1: a softmax at another temperature needs the logits outside the top k, which "
        "a store lacks. Live teachers of `extract` and `balance` accept others.",
    )
    best_by: Literal["character", "token"] | None = Field(
        None,
        description="With `use: best`, compare teachers by their loss per masked character, or per masked "
        "token (the paper), which favours tokenizers that split words into more pieces. Empty: `character`, "
        "or `token` with `masking.unit: tokens`.",
    )

    @property
    def weight(self) -> LossWeight:
        """Lambda during training."""
        return LossWeight(first=self.teacher_weight, last=self.final_teacher_weight, schedule=self.schedule)

    @field_validator("temperature")
    @classmethod
    def _at_one(cls, value: float) -> float:
        if value != 1:
            raise ValueError(
                f"temperature {value:g}: stored predictions need temperature 1, because a softmax at another "
                "one needs the logits of all pieces; leave it out"
            )
        return value


# The default architecture of a student.
MODEL_TYPE = "bert"


class Model(Settings):
    """The model that is pre-trained."""

    model_type: str = Field("bert", description="An architecture that `AutoModelForMaskedLM` knows.")
    config: dict[str, Any] = Field(default_factory=dict, description="Fields of its configuration.")
    start: Start = Field(default_factory=Start)


def as_script(name: str) -> str:
    """The name of a Unicode script; ValueError for any other string."""
    try:
        regex.compile(rf"\p{{Script={name}}}")
    except regex.error:
        raise ValueError(
            f"{name!r}: Unicode has no script of that name; use, for example, Latin, Cyrillic or Greek"
        ) from None
    return name


class WordPiece(Settings):
    """The WordPiece vocabulary that is trained on the text."""

    size: int = Field(30_000, ge=100, description="Number of pieces.")
    lowercase: bool = Field(True, description="Lowercase text.")
    strip_accents: bool | list[Annotated[str, AfterValidator(as_script)]] | None = Field(
        None,
        description="Strip accents; empty: the same as `lowercase`, as in BERT. Or a list of the scripts "
        "where they are stripped, such as `[Latin, Greek]`: in others, marks are vowels (Devanagari) or "
        "parts of letters (Hangul).",
    )
    min_frequency: int = Field(2, ge=1, description="Minimum number of occurrences of a piece.")
    limit_alphabet: int = Field(6000, ge=10, description="Maximum number of distinct characters.")


class Evaluation(Settings):
    """What is measured on held-out text."""

    max_examples: int = Field(1000, ge=1, description="Maximum held-out examples per language and text.")
    batch_tokens: int = Field(4096, ge=64, description="Maximum tokens in a batch, padding included.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="`auto`: bfloat16 where the hardware supports it, for teachers and student alike."
    )
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15,
        description="Share of masked units (`masking.unit`), whatever training masks: figures at different "
        "shares do not compare.",
    )
    num_samples: int = Field(3, ge=0, description="Masked sentences per language in the report.")


class Card(Settings):
    """Facts on the model card that a run cannot know."""

    license: Line | None = Field(
        None,
        description="The licence under which you publish the model, by its name on the hub, such as "
        "`cc-by-sa-4.0`.",
    )
    datasets: list[Line] = Field(
        default_factory=list, description="Names on the hub of the training text's data sets."
    )


class RunRecipe(Settings):
    """The settings of every recipe, and the questions that every recipe answers about itself."""

    recipe: str = ""
    name: Name = Field(description="The run's name.")
    output: str = Field("", description="The run's folder; empty: `runs/<name>`.")
    reuse: list[str] = Field(
        default_factory=list,
        description="Folders of other runs, or URLs of uploaded ones (`polydistill store upload`), whose "
        "corpora, stores and student are reused where they match this run.",
    )
    data: str = Field(
        "",
        description="The folder of public data and models: a leading `$data` in a path is this folder. "
        "Empty: POLYDISTILL_DATA. In a grid: for the runs that name none.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of all random draws.")

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output or f"runs/{self.name}")

    @property
    def texts(self) -> dict[str, list[Source]]:
        """Field of the recipe → the sources of training text."""
        return {}

    @property
    def further_texts(self) -> dict[str, list[Source]]:
        """Field of the recipe → the sources of text that is only evaluated on."""
        own = {
            "": self,
            **{f"languages.{name}.": each for name, each in getattr(self, "languages", {}).items()},
        }
        return {
            f"{place}{key}.{name}": sources
            for place, each in own.items()
            for key in ("evaluation", "evaluation_texts")
            if isinstance(texts := getattr(each, key, None), dict)
            for name, sources in texts.items()
        }

    @property
    def models_read(self) -> list[str]:
        """Names and folders of the models that the run reads."""
        return []

    @property
    def models_made(self) -> list[Path]:
        """Folders of the models that the run makes."""
        return []

    @property
    def seeds_each(self) -> int:
        """How many seeds the run itself takes, from `seed` on."""
        return 1

    @property
    def stored_scoring(self) -> Scoring | None:
        """How teachers' predictions are stored; None if the recipe stores none."""
        return None


class TextRecipe(RunRecipe):
    """The settings of every recipe that trains on text."""

    corpora: Corpora = Field(default_factory=Corpora)
    masking: Masking = Field(default_factory=Masking)
    training: Arguments = Field(
        default_factory=dict, description="Arguments of `transformers.TrainingArguments`, by their own names."
    )
    evaluation: Evaluation = Field(default_factory=Evaluation)
    card: Card = Field(default_factory=Card)
