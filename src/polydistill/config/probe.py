"""The recipe `probe`: every setting with its default and meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from polydistill.config.settings import Name, Settings, check_names
from polydistill.config.shared import RunRecipe, as_model


class TaggedData(Settings):
    """One language's tagged sentences."""

    train: str = Field(description="The probe's training file: .conllu, or a file of columns (word, …, tag).")
    test: str = Field(description="The test file.")
    max_sentences: int | None = Field(None, ge=1, description="Maximum number of sentences of each file.")


class ProbedModel(Settings):
    """A model to probe. A plain string is short for `model`."""

    model: str = Field(description="A folder, or a model's name on the Hugging Face hub.")
    tokenizer: Literal["own", "default"] = Field(
        "own",
        description="`own`: a polydistill student's own tokenizer for the language, if there is one; "
        "`default`: the model's, for every language.",
    )
    revision: str | None = Field(None, description="Revision on the hub: a branch, a tag or a commit.")


class Probing(Settings):
    """How probes are trained."""

    num_seeds: int = Field(5, ge=1, description="Probes per source language, each from other random weights.")
    epochs: int = Field(10, ge=1, description="Passes of each probe over the training words.")
    batch_size: int = Field(256, ge=1, description="Words per batch.")
    max_length: int = Field(
        128, ge=8, description="Maximum tokens per sequence of the encoder; longer sentences are split."
    )
    batch_tokens: int = Field(
        4096, ge=64, description="Maximum tokens in a batch of the encoder, padding included."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="The encoder's precision. `auto`: bfloat16 where the hardware supports it."
    )


class ProbeRecipe(RunRecipe):
    """Linear classifiers on frozen encoders: parts of speech and entities, within and across languages."""

    recipe: Literal["probe"] = "probe"
    reuse: list[str] = Field(
        default_factory=list,
        description="Folders of other probe runs whose features are reused where they match this run: same "
        "name, weights, tokenizer and text.",
    )
    models: dict[Name, Annotated[ProbedModel, BeforeValidator(as_model)]] = Field(
        min_length=1, description="Name → a model to probe: a folder or hub name, or its settings."
    )
    tasks: dict[Literal["pos", "ner"], dict[Name, TaggedData]] = Field(
        min_length=1, description="The data of each task's languages."
    )
    groups: dict[Name, list[Name]] = Field(
        default_factory=dict,
        description="Averages over some target languages, beside that over all, such as `low: [sw, te]`.",
    )
    probing: Probing = Field(default_factory=Probing)

    @model_validator(mode="after")
    def _groups_exist(self) -> ProbeRecipe:
        known = {language for languages in self.tasks.values() for language in languages}
        check_names(self.groups, {"all": "all languages"}, "groups")
        for task, languages in self.tasks.items():
            if not languages:
                raise ValueError(f"tasks.{task}: has no language; add one with its `train` and `test`")
        for group, members in self.groups.items():
            for index, language in enumerate(members):
                if language not in known:
                    raise ValueError(
                        f"groups.{group}[{index}] {language!r}: no task has this language; they have "
                        f"{', '.join(sorted(known))}"
                    )
        return self

    @property
    def seeds_each(self) -> int:
        """How many seeds the run itself takes, from `seed` on."""
        return self.probing.num_seeds

    @property
    def models_read(self) -> list[str]:
        """Names and folders of the models."""
        return list(dict.fromkeys(settings.model for settings in self.models.values()))
