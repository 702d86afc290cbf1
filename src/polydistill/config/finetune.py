"""The recipe `finetune`: models, tasks, languages and seeds, with the papers' hyper-parameters."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from polydistill.config.groups import MARGIN, Margin, check_groups
from polydistill.config.probe import ProbedModel
from polydistill.config.settings import Name, Settings, Share, check_names
from polydistill.config.shared import Arguments, RunRecipe, as_list, as_model, as_path

Kind = Literal["ner", "pos", "classification", "pairs", "choice", "qa"]
Preset = Literal["mergedistill", "xtreme", "eliquare"]

# Rows as the papers print them. MergeDistill's tables have no rows for classification and choice, and
# Eliquare states neither batch size nor length: those values are ours.
_TAGS = {"num_train_epochs": 10, "warmup_steps": 0.1, "per_device_train_batch_size": 32}
_ELIQUARE = {
    "learning_rate": 5e-5,
    "num_train_epochs": 5,
    "warmup_steps": 500,
    "per_device_train_batch_size": 32,
}
PRESETS: dict[str, dict[str, Arguments]] = {
    # MergeDistill, table 7.
    "mergedistill": {
        kind: {**_TAGS, "learning_rate": 3e-5, "max_length": 384 if kind == "qa" else 256}
        for kind in ("ner", "pos", "classification", "pairs", "choice", "qa")
    },
    # MergeDistill, table 11; `pairs` is XNLI's row, PAWS-X takes 5 epochs.
    "xtreme": {
        "ner": {**_TAGS, "learning_rate": 2e-5, "max_length": 128},
        "pos": {**_TAGS, "learning_rate": 5e-6, "per_device_train_batch_size": 64, "max_length": 128},
        "qa": {**_TAGS, "learning_rate": 3e-5, "num_train_epochs": 2, "max_length": 384},
        **{
            kind: {**_TAGS, "learning_rate": 2e-5, "num_train_epochs": 3, "max_length": 128}
            for kind in ("classification", "pairs", "choice")
        },
    },
    # Eliquare, section 3.
    "eliquare": {
        kind: {**_ELIQUARE, "max_length": 384 if kind == "qa" else 128}
        for kind in ("ner", "pos", "classification", "pairs", "choice", "qa")
    },
}


class LabelledSource(Settings):
    """A source of labelled examples. A plain string is short for `path`."""

    path: str | None = Field(
        None,
        description="A file, also .gz, .xz or .zst: .conllu or columns (`ner`, `pos`), .tsv, .csv or .jsonl "
        "(`classification`, `pairs`, `choice`), SQuAD's .json (`qa`).",
    )
    dataset: str | None = Field(None, description="A data set that `datasets` loads, by name or local path.")
    config: str | None = Field(None, description="The data set's configuration, such as `PAN-X.sw`.")
    split: str = Field("train", description="The data set's split.")
    quotes: bool | None = Field(None, description="Overrides the task's `columns.quotes` for this file.")
    first_example: int = Field(1, ge=1, description="The first example to read, counted from 1.")
    num_examples: int | None = Field(
        None,
        ge=1,
        description="Number of examples to read. With `first_example`, a part of a training file can serve "
        "as the test set where there is none.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> LabelledSource:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either `path` or `dataset`")
        return self


_Source = Annotated[LabelledSource, BeforeValidator(as_path)]
_OptionalSource = Annotated[LabelledSource | None, BeforeValidator(as_path)]


class TaskData(Settings):
    """One language's examples."""

    train: _OptionalSource = Field(
        None, description="The training set; not needed for a target language of `zero_shot`."
    )
    dev: _OptionalSource = Field(
        None,
        description="The dev set, for early stopping and choosing the checkpoint; empty: `dev_share` of "
        "`train`.",
    )
    test: _Source = Field(description="The test set.")


class Columns(Settings):
    """The columns of tables, the fields of JSON and of data sets."""

    text: str = Field("text", description="The text, or a pair's first.")
    pair: str = Field("pair", description="A pair's second text.")
    label: str = Field("label", description="The class; `choice`: the number of the correct choice.")
    premise: str = Field("premise", description="`choice`: the premise.")
    question: str | None = Field(
        None, description="`choice`: a field that follows the premise, such as XCOPA's `question`."
    )
    choices: list[str] = Field(
        ["choice1", "choice2"], min_length=2, description="`choice`: the columns of the choices, in order."
    )
    first_choice: int = Field(0, description="`choice`: the value of `label` for the first choice.")
    words: str = Field("tokens", description="`ner` and `pos` in data sets: the words.")
    tags: str = Field("ner_tags", description="`ner` and `pos` in data sets: the words' tags.")
    header: list[str] = Field(
        default_factory=list, description="Column names for .tsv and .csv files without a header line."
    )
    quotes: bool | None = Field(
        None,
        description="Whether fields of .tsv and .csv files are quoted (with quotation marks in them "
        "doubled); empty: only in .csv files.",
    )


class Task(Settings):
    """A task on which models are trained and tested."""

    kind: Kind = Field(
        description="`ner`: entities; `pos`: a tag for every word; `classification`: a text's class; "
        "`pairs`: a pair's class (NLI, paraphrase); `choice`: the correct one of several; `qa`: a question's "
        "answer within a text."
    )
    data: dict[Name, TaskData] = Field(min_length=1, description="Each language's examples.")
    setting: Literal["in_language", "zero_shot"] = Field(
        "in_language",
        description="`in_language`: train and test on each language separately; `zero_shot`: train on "
        "`source`, test on all languages.",
    )
    source: Name | None = Field(None, description="With `zero_shot`: the training language.")
    columns: Columns = Field(default_factory=Columns)
    preset: Preset | None = Field(None, description="Overrides the recipe's preset.")
    training: Arguments = Field(
        default_factory=dict,
        description="Arguments of `transformers.TrainingArguments` that override the recipe's.",
    )
    max_length: int | None = Field(
        None, ge=8, description="Maximum tokens of a sequence; empty: the preset's."
    )
    max_examples: int | None = Field(
        None, ge=1, description="Maximum number of examples of each file, sampled at random."
    )
    dev_share: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.1, description="Share of the training examples that become the dev set of a language without `dev`."
    )
    parallel: bool = Field(
        False,
        description="The test files are translations of each other, item by item (XQuAD, PAWS-X, SIB-200): "
        "intervals of averages over languages draw the same items in all of them.",
    )
    unseen_labels: Literal["refuse", "count"] = Field(
        "refuse",
        description="Test labels that the training set lacks: an error (`refuse`), or counted as wrong and "
        "reported.",
    )
    overlap: Literal["count", "drop"] = Field(
        "count",
        description="Training and dev examples that are also in a test file of the task (`qa`: questions on "
        "a text that is in one): counted and reported, or dropped from training and dev.",
    )
    stride_tokens: int = Field(
        128, ge=1, description="`qa`: tokens that neighbouring windows of a long text share."
    )
    max_answer_tokens: int = Field(30, ge=1, description="`qa`: maximum tokens of an answer.")
    normalisation: Literal["auto", "squad", "mlqa"] = Field(
        "auto",
        description="`qa`: how answers are normalised before they are compared. `squad`: SQuAD v1.1's "
        "script; `mlqa`: MLQA's, with the articles of each language; `auto`: MLQA's for languages written "
        "without spaces, else SQuAD's.",
    )

    @model_validator(mode="after")
    def _sources(self) -> Task:
        known = ", ".join(self.data)
        if self.setting == "in_language":
            if self.source is not None:
                raise ValueError(
                    f"source {self.source!r}: needs setting: zero_shot; set that, or leave source out"
                )
            for language, data in self.data.items():
                if data.train is None:
                    raise ValueError(
                        f"data.{language}.train: this language has no training set, which setting "
                        "in_language needs; add it, or set setting: zero_shot and source"
                    )
            return self
        if self.source is None:
            raise ValueError(f"source: missing; name the language to train on, one of {known}")
        if self.source not in self.data:
            raise ValueError(f"source {self.source!r}: the task has no such language; it has {known}")
        if self.data[self.source].train is None:
            raise ValueError(f"data.{self.source}.train: the source has no training set; add it")
        return self

    @property
    def sources(self) -> list[str]:
        """The training languages."""
        return list(self.data) if self.source is None else [self.source]

    def targets(self, source: str) -> list[str]:
        """The test languages of a model trained on `source`."""
        return [source] if self.source is None else list(self.data)


class FinetunedModel(ProbedModel):
    """A model to fine-tune. A plain string is short for `model`."""

    languages: list[Name] | None = Field(
        None, min_length=1, description="The languages that it is trained and tested on; empty: all."
    )
    weights: Literal["trained", "random"] = Field(
        "trained",
        description="`random`: only the architecture and the tokenizers, with random weights by the job's "
        "seed: a baseline that shows what pre-training contributes.",
    )
    allow_pickle: bool = Field(
        False, description="Accept weights that exist only as a pickle (read with `weights_only=True`)."
    )


class FinetuneRecipe(RunRecipe):
    """Models x tasks x languages x seeds, fine-tuned in turn, with scores and the gap to a teacher's."""

    recipe: Literal["finetune"] = "finetune"
    reuse: list[str] = Field(
        default_factory=list,
        description="Folders of other fine-tuning runs whose finished jobs are reused where they match this "
        "run.",
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="The first seed; it also determines the split of dev sets."
    )
    num_seeds: int = Field(
        3,
        ge=1,
        le=100,
        description="Trainings per job, each with other initial heads and another order of the examples.",
    )
    models: dict[Name, Annotated[FinetunedModel, BeforeValidator(as_model)]] = Field(
        min_length=1, description="Name → a model to fine-tune: a folder or hub name, or its settings."
    )
    teachers: dict[Name, Annotated[list[Name], Field(min_length=1), BeforeValidator(as_list)]] = Field(
        default_factory=dict,
        description="Language → the model that others are compared with (RDT), such as `{ko: bert-ko}`, or "
        "several, each of which gets an RDT of its own: `{hi: [muril, mbert]}`.",
    )
    groups: dict[Name, list[Name]] = Field(
        default_factory=dict,
        description="Name → languages, such as `{covered: [hi, en], other: [de]}`: averages over each "
        "group's languages and over tasks, and their RDT from each teacher.",
    )
    baseline: Name | None = Field(
        None,
        description="The model that others are compared with in languages without an entry in `teachers`, "
        "and in tasks whose source language is not among their teacher's languages.",
    )
    tasks: dict[Name, Task] = Field(min_length=1, description="Name → a task: its kind and its data.")
    preset: Preset = Field(
        "mergedistill",
        description="Default hyper-parameters: `mergedistill` (its table 7: 3e-5, 10 epochs), `xtreme` (its "
        "table 11), `eliquare` (section 3: 5e-5, 5 epochs, 500 steps of warm-up).",
    )
    training: Arguments = Field(
        default_factory=dict,
        description="Arguments of `transformers.TrainingArguments` that override the preset's.",
    )
    patience: int = Field(
        3,
        ge=0,
        description="Stop after this many measurements on the dev set without improvement, counted from the "
        "first score above 0; 0: train to the end. The best checkpoint is kept in either case.",
    )
    evaluations_per_epoch: int = Field(
        1, ge=1, description="Measurements on the dev set per epoch; each saves a checkpoint."
    )
    keep: Literal["nothing", "best"] = Field(
        "nothing",
        description="`best`: for each task, model and source language, `models/TASK/MODEL/LANGUAGE` holds "
        "the fine-tuned model of the seed that is best on the dev set. `nothing`: only scores and "
        "predictions are kept.",
    )
    batch_tokens: int = Field(
        4096, ge=64, description="Maximum tokens in a batch of predictions, padding included."
    )
    bootstrap_samples: int = Field(
        1000, ge=100, description="Bootstrap samples of test items for the intervals."
    )
    within_percent: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        5.0, description="A model counts as close to its teacher if it is at most this many percent below it."
    )
    equivalence_margin: Margin = Field(None, description=MARGIN)
    level: Share = Field(0.95, description="Confidence level of the intervals.")

    @model_validator(mode="after")
    def _names(self) -> FinetuneRecipe:
        known = ", ".join(self.models)
        languages = {language for task in self.tasks.values() for language in task.data}
        for name, task in self.tasks.items():
            check_names(task.data, {"all": "all languages in the results"}, f"tasks.{name}.data")
        for language, teachers in self.teachers.items():
            if language not in languages:
                raise ValueError(
                    f"teachers.{language}: no task has this language; they have "
                    f"{', '.join(sorted(languages))}"
                )
            for model in teachers:
                self._check_teacher(language, model)
        if self.baseline is not None and self.baseline not in self.models:
            raise ValueError(f"baseline {self.baseline!r}: no model of that name; the recipe defines {known}")
        for name, settings in self.models.items():
            for index, language in enumerate(settings.languages or ()):
                if language not in languages:
                    raise ValueError(
                        f"models.{name}.languages[{index}] {language!r}: no task has this language; they "
                        f"have {', '.join(sorted(languages))}"
                    )
        check_groups(self.groups, languages)
        return self

    def _check_teacher(self, language: str, model: str) -> None:
        if model not in self.models:
            raise ValueError(
                f"teachers.{language} {model!r}: no model of that name; the recipe defines "
                f"{', '.join(self.models)}"
            )
        if self.teachers[language].count(model) > 1:
            raise ValueError(f"teachers.{language} {model!r}: is named twice; leave one out")
        if language not in (self.models[model].languages or [language]):
            raise ValueError(
                f"teachers.{language} {model!r}: models.{model}.languages lacks {language}, so it has no "
                "scores there; add it, or name another"
            )

    def teachers_of(self, language: str, scored: Mapping[str, Container[str]] | None = None) -> list[str]:
        """The models that others are compared with in a language.

        scored  model → the languages of a task in which it has scores: if none of a language's teachers has
                any there (they are not trained on the task's source), `baseline` replaces them; None: every
                model has scores in all languages
        """

        def usable(models: Iterable[str]) -> list[str]:
            return [model for model in models if scored is None or language in scored.get(model, ())]

        own = usable(self.teachers.get(language, ()))
        return own or usable([] if self.baseline is None else [self.baseline])

    def max_length(self, task: Task) -> int:
        """Maximum tokens of a task's sequences."""
        preset: int = PRESETS[task.preset or self.preset][task.kind]["max_length"]
        return task.max_length or preset

    def arguments(self, task: Task) -> Arguments:
        """A task's arguments for TrainingArguments: the preset's, then the recipe's, then its own."""
        preset = {
            k: v for k, v in PRESETS[task.preset or self.preset][task.kind].items() if k != "max_length"
        }
        return preset | self.training | task.training

    @property
    def seeds_each(self) -> int:
        """How many seeds the run itself takes, from `seed` on."""
        return self.num_seeds

    @property
    def models_read(self) -> list[str]:
        """Names and folders of the models."""
        return list(dict.fromkeys(settings.model for settings in self.models.values()))
