"""The queue's jobs. A job trains one model for one task, from one language and seed, and tests it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from polydistill.config.finetune import FinetunedModel, FinetuneRecipe
from polydistill.disk import Json, fingerprint
from polydistill.errors import RecipeError
from polydistill.models.load import model_config, weights_fingerprint
from polydistill.models.precision import device
from polydistill.tasks.encoding import Coder
from polydistill.tasks.heads import Feature, load_with_head, predict, takes_segments
from polydistill.tasks.labelled import Example
from polydistill.tasks.scores import items_of
from polydistill.tasks.splits import TaskTexts, gold_of
from polydistill.tasks.squad import uses_mlqa
from polydistill.tasks.training import steps_of
from polydistill.tokenization.load import LoadedTokenizer, probed_tokenizer
from polydistill.training.arguments import check_finetuning, portable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# A preset's warm-up of more than this share of the training is shortened to WARM_UP of it.
LONGEST_WARM_UP = 0.5
WARM_UP = 0.1


class Model:
    """A model of the recipe: its fingerprint, and its tokenizer for each language."""

    def __init__(self, name: str, settings: FinetunedModel) -> None:
        self.name, self.settings = name, settings
        self._tokenizers: dict[str, LoadedTokenizer] = {}

    @property
    def field(self) -> str:
        """Its place in the recipe."""
        return f"models.{self.name}"

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Its configuration."""
        return model_config(self.settings.model, revision=self.settings.revision, field=self.field)

    @cached_property
    def weights(self) -> str:
        """A fingerprint of its weights; of random ones, of the architecture."""
        if self.random:
            # Neither its path nor the library that wrote it.
            ignored = {"_name_or_path", "transformers_version"}
            values = {key: value for key, value in self.config.to_diff_dict().items() if key not in ignored}
            return f"random {fingerprint(values)}"
        return weights_fingerprint(self.settings.model, revision=self.settings.revision)

    @property
    def random(self) -> bool:
        """Whether it starts from random weights."""
        return self.settings.weights == "random"

    def reads(self, language: str) -> bool:
        """Whether it is trained and tested on a language."""
        return self.settings.languages is None or language in self.settings.languages

    @cached_property
    def own_tokenizers(self) -> list[str]:
        """The languages that have their own tokenizer in its folder, if the recipe lets it use them."""
        folder = Path(self.settings.model) / "tokenizer"
        if self.settings.tokenizer != "own" or not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if (path / "tokenizer.json").is_file())

    def tokenizer(self, language: str) -> LoadedTokenizer:
        """Its tokenizer for a language."""
        if language not in self._tokenizers:
            self._tokenizers[language] = probed_tokenizer(self.settings, language, field=self.field)
        return self._tokenizers[language]


@dataclass
class Job:
    """One training and its tests."""

    recipe: FinetuneRecipe
    texts: TaskTexts
    model: Model
    source: str
    seed: int

    @property
    def place(self) -> str:
        """Its folder within the run's."""
        return f"jobs/{self.texts.name}/{self.model.name}/{self.source}-{self.seed}"

    @property
    def targets(self) -> list[str]:
        """The languages that it is tested on."""
        return [target for target in self.texts.task.targets(self.source) if self.model.reads(target)]

    @cached_property
    def inputs(self) -> Json:
        """Everything that its scores depend on."""
        task = self.texts.task
        read = {language: self.texts.identity(language, "test") for language in self.targets}
        learned = {split: self.texts.identity(self.source, split) for split in ("train", "dev")}
        return {
            "stage": "finetune",
            "kind": task.kind,
            "weights": self.model.weights,
            "tokenizers": {
                language: self.model.tokenizer(language).fingerprint
                for language in dict.fromkeys((self.source, *self.targets))
            },
            "source": {"language": self.source, **learned},
            "targets": read,
            # The labels themselves: the names of the file's fields do not change them.
            "labels": self.texts.labels(self.source),
            "answers": [task.stride_tokens, task.max_answer_tokens, task.normalisation]
            if task.kind == "qa"
            else None,
            # The recipe's settings within the tokenizer's limits, which its fingerprint does not cover.
            "reading": {
                language: [coder.max_length, coder.segments] for language, coder in self._coders().items()
            },
            "training": portable(self.recipe_arguments),
            "own_warmup": self._own_warmup,
            "patience": self.recipe.patience,
            "evaluations_per_epoch": self.recipe.evaluations_per_epoch,
            "seed": self.seed,
        }

    @cached_property
    def recipe_arguments(self) -> Json:
        """Arguments of TrainingArguments, checked; RecipeError for one that is wrong."""
        return task_arguments(self.recipe, self.texts.name)

    @property
    def _own_warmup(self) -> bool:
        """Whether the recipe itself sets the warm-up."""
        return "warmup_steps" in (self.recipe.training | self.texts.task.training)

    def _coders(self) -> dict[str, Coder]:
        return {language: self.coder(language) for language in dict.fromkeys((self.source, *self.targets))}

    @property
    def notes(self) -> list[str]:
        """How this model changes the recipe's settings, in words."""
        asked = self.recipe.max_length(self.texts.task)
        return [
            f"{self.model.field}: reads {language} in sequences of {coder.max_length} tokens at most, not "
            f"{asked} ({self.texts.name}): it takes no more"
            for language, coder in self._coders().items()
            if coder.max_length < asked
        ] + [
            f"{self.model.field}: reads {language} by the tokenizer of all its languages: it has own ones "
            f"for {', '.join(own)}"
            for language in self._coders()
            if (own := self.model.own_tokenizers) and language not in own
        ]

    @property
    def groups_by_length(self) -> bool:
        """Whether a batch's examples have similar lengths, by the current or older name of the argument."""
        values = self.recipe_arguments
        by_length = values.get("train_sampling_strategy") == "group_by_length"
        return by_length or bool(values.get("group_by_length"))

    def arguments(self, num_features: int) -> tuple[Json, str | None]:
        """The arguments for a training with that many features, and a line on what was changed in them.

        A preset's warm-up (Eliquare's 500 steps) may be longer than the training on a small set, which would
        never reach its learning rate: it is shortened then. A warm-up that the recipe itself sets stays.
        """
        values = self.recipe_arguments
        steps = steps_of(num_features, values)[1]
        warm_up = values["warmup_steps"]
        if self._own_warmup or warm_up < 1 or warm_up <= LONGEST_WARM_UP * steps:
            return values, None
        change = (
            f"{warm_up} steps of warm-up are too many for a training of {steps}: {WARM_UP:.0%} of them "
            "instead"
        )
        return values | {"warmup_steps": WARM_UP}, change

    def coder(self, language: str) -> Coder:
        """How its model reads a language."""
        tokenizer = self.model.tokenizer(language)
        names = tokenizer.settings.get("model_input_names", ())
        return Coder(
            self.texts.task,
            tokenizer,
            self.texts.labels(self.source),
            min(self.recipe.max_length(self.texts.task), tokenizer.max_length),
            takes_segments(self.model.config, names),
        )

    def load(self, place: str | None = None) -> PreTrainedModel:
        """The model with a fresh head, or from a checkpoint."""
        settings = self.model.settings
        return load_with_head(
            place or settings.model,
            self.texts.task.kind,
            num_labels=len(self.texts.labels(self.source)),
            seed=self.seed,
            fresh=place is None,
            field=self.model.field,
            revision=None if place else settings.revision,
            allow_pickle=settings.allow_pickle,
            random=self.model.random and place is None,
        ).to(device())

    def rows(
        self,
        model: PreTrainedModel,
        language: str,
        examples: Sequence[Example],
        features: Sequence[Feature] | None = None,
    ) -> list[Json]:
        """`gold` and `predicted` of each example."""
        coder = self.coder(language)
        encoded = list(features) if features is not None else coder.encode(examples)
        dtype = torch.bfloat16 if self.recipe_arguments.get("bf16") else torch.float32
        outputs = predict(
            model,
            encoded,
            pad_id=coder.tokenizer.special_ids["pad"],
            batch_tokens=self.recipe.batch_tokens,
            dtype=dtype,
        )
        predicted = coder.decode(examples, encoded, outputs)
        return [
            {"gold": gold_of(example), "predicted": answer}
            for example, answer in zip(examples, predicted, strict=True)
        ]

    def scores(self, rows: Sequence[Json], language: str) -> dict[str, float]:
        """Metric → score of predictions."""
        task = self.texts.task
        return items_of(task.kind, rows, language, mlqa=uses_mlqa(language, task.normalisation)).scores()


def task_arguments(recipe: FinetuneRecipe, name: str) -> Json:
    """A task's arguments of TrainingArguments, checked; RecipeError names the task that sets an argument."""
    task = recipe.tasks[name]

    def place(argument: str) -> str:
        return f"tasks.{name}.training" if argument in task.training else "training"

    return check_finetuning(recipe.arguments(task), place)


def all_jobs(recipe: FinetuneRecipe, texts: dict[str, TaskTexts]) -> list[Job]:
    """The queue. All models of a task run with one seed before the next, so that early results compare.

    Checks arguments, models and tokenizers; raises UserError for unusable ones.
    """
    models = [Model(name, settings) for name, settings in recipe.models.items()]
    jobs = [
        Job(recipe, task_texts, model, source, recipe.seed + index)
        for task_texts in texts.values()
        for index in range(recipe.num_seeds)
        for source in task_texts.task.sources
        for model in models
        if model.reads(source)
    ]
    if not jobs:
        raise RecipeError(
            "models",
            None,
            "none of them reads a language that a task is trained on",
            "add one, or correct models.NAME.languages",
        )
    for job in jobs:
        _ = job.recipe_arguments, job.model.config
        for language in (job.source, *job.targets):
            job.model.tokenizer(language)
    return jobs


def notes_of(jobs: Sequence[Job]) -> list[str]:
    """Notes on how models and tasks fit together, each once."""
    notes = [note for job in jobs for note in job.notes]
    recipe = jobs[0].recipe
    for name, task in recipe.tasks.items():
        notes += [
            f"models.{model}: is not trained for {name}, which learns from {task.source}, and its "
            "`languages` lack that"
            for model, settings in recipe.models.items()
            if task.source is not None
            and settings.languages is not None
            and task.source not in settings.languages
            and set(settings.languages) & task.data.keys()
        ]
    for texts in {job.texts.name: job.texts for job in jobs}.values():
        scored: dict[str, set[str]] = {}
        for job in jobs:
            if job.texts is texts:
                scored.setdefault(job.model.name, set()).update(job.targets)
        for target in texts.task.data:
            left = recipe.teachers_of(target, scored)
            for teacher in recipe.teachers_of(target):
                if teacher in left:
                    continue
                instead = f"RDT is from {' and '.join(left)}" if left else "there is no RDT"
                notes.append(
                    f"{texts.field(target, 'test')}: its teacher {teacher} is not trained for it, so "
                    f"{instead}"
                )
    return list(dict.fromkeys(notes))
