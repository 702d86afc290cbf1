"""The recipe `embed`: every setting with its default and meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from polydistill.config.settings import Name, Settings, Share, TextName
from polydistill.config.shared import (
    Arguments,
    Card,
    RunRecipe,
    Source,
    Sources,
    Teacher,
    as_list,
    as_model,
    as_path,
)

# How hidden states become one vector, as sentence-transformers calls it.
Pooling = Literal["mean", "cls", "max"]


class EmbedTeacher(Teacher):
    """A sentence encoder whose vectors are learned. A plain string is short for `model`."""

    model: str = Field(
        description="A sentence-transformers folder, an encoder's folder, or a name on the Hugging Face hub."
    )
    pooling: Pooling | None = Field(
        None,
        description="How a plain encoder's hidden states become a vector; empty: a sentence-transformers "
        "folder's own, else `mean` over all attended tokens.",
    )
    max_length: int | None = Field(
        None, ge=3, description="Maximum tokens of a sentence; empty: the folder's own, at most 512."
    )
    prompt: str | None = Field(
        None,
        max_length=1000,
        description="Text before every sentence that the teacher reads, such as `query: ` (E5); empty: a "
        "sentence-transformers folder's default prompt.",
    )


class EmbedStudent(Settings):
    """The encoder that is trained. A plain string is short for `model`."""

    model: str = Field(
        description="A folder or a hub name of an encoder, such as a student of another recipe. Training "
        "starts from its weights."
    )
    revision: str | None = Field(None, description="Revision on the hub: a branch, a tag or a commit.")
    allow_pickle: bool = Field(
        False, description="Accept weights that exist only as a pickle (read with `weights_only=True`)."
    )
    pooling: Pooling | None = Field(
        None,
        description="How hidden states become a vector; empty: a sentence-transformers folder's own, else "
        "`mean`.",
    )
    projection: bool | None = Field(
        None,
        description="Whether a linear layer follows the pooling. It starts as the least-squares map to the "
        "teacher's vectors. Empty: only where the widths differ.",
    )
    projection_sentences: int = Field(
        10_000, ge=1, description="Training sentences that the projection's start is fitted on."
    )


class EmbedLanguage(Settings):
    """One language's sentences: text, translations, or both."""

    text: Annotated[list[Annotated[Source, BeforeValidator(as_path)]], BeforeValidator(as_list)] = Field(
        default_factory=list, description="Sources of text; each line is a sentence."
    )
    translations: Annotated[list[str], BeforeValidator(as_list)] = Field(
        default_factory=list,
        description="Files of lines `SENTENCE<tab>TRANSLATION`, also .gz, .xz or .zst. The student learns "
        "the teacher's vector of the sentence for both (Reimers and Gurevych 2020).",
    )

    @model_validator(mode="after")
    def _some(self) -> EmbedLanguage:
        if not self.text and not self.translations:
            raise ValueError("give `text`, `translations`, or both")
        return self


class Sentences(Settings):
    """Which sentences are used, and how long they are."""

    max_length: int = Field(128, ge=8, description="Maximum tokens of a sentence that the student reads.")
    min_characters: int = Field(2, ge=1, description="Drop sentences with fewer characters.")
    max_sentences: int | None = Field(
        None, ge=1, description="Maximum number of training sentences per language, sampled by `seed`."
    )
    held_out_share: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.02, description="Share of the sentences held out for evaluation, told by their content."
    )
    smoothing_alpha: Share = Field(
        0.7,
        description="Languages are sampled with probability proportional to (number of sentences) ** alpha.",
    )


class Vectors(Settings):
    """How the teacher's vectors are computed and stored."""

    dtype: Literal["float16", "float32"] = Field("float16", description="Type of the stored numbers.")
    batch_tokens: int = Field(4096, ge=64, description="Maximum tokens in a batch, padding included.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="The teacher's precision. `auto`: bfloat16 where the hardware supports it."
    )


class ParallelSentences(Settings):
    """The same sentences in several languages."""

    files: dict[Name, str] = Field(
        min_length=2,
        description="Language → its file: .txt (line i is the same sentence in all), .tsv, .csv or .jsonl, "
        "also .gz, .xz or .zst.",
    )
    text: str = Field("text", description="The column of the sentence.")
    id: str | None = Field(
        None,
        description="The column by which rows of different files are the same sentence, such as SIB-200's "
        "`index_id`; empty: row i of each file.",
    )


class ScoredPairs(Settings):
    """Pairs of sentences with people's scores of similarity (STS). A plain string is short for `path`."""

    path: str = Field(description="A .tsv, .csv or .jsonl file, also .gz, .xz or .zst.")
    first: str = Field("sentence1", description="The column of the first sentence.")
    second: str = Field("sentence2", description="The column of the second sentence.")
    score: str = Field("score", description="The column of the score.")


class EmbedEvaluation(Settings):
    """What is measured."""

    max_sentences: int = Field(1000, ge=2, description="Maximum held-out sentences per language.")
    retrieval: dict[TextName, ParallelSentences] = Field(
        default_factory=dict,
        description="Name → parallel sentences: the share whose nearest neighbour by cosine among the other "
        "language's sentences is their translation.",
    )
    similarity: dict[TextName, Annotated[ScoredPairs, BeforeValidator(as_path)]] = Field(
        default_factory=dict,
        description="Name → scored pairs: Spearman's correlation of the cosine with the score.",
    )
    batch_tokens: int = Field(4096, ge=64, description="Maximum tokens in a batch, padding included.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="Of teacher and student. `auto`: bfloat16 where the hardware supports it."
    )


class EmbedRecipe(RunRecipe):
    """A sentence encoder's vectors in, a small sentence encoder out."""

    recipe: Literal["embed"] = "embed"
    reuse: list[str] = Field(
        default_factory=list,
        description="Folders of other embed runs whose sentences, vectors and student are reused where they "
        "match this run.",
    )
    teacher: Annotated[EmbedTeacher, BeforeValidator(as_model)] = Field(
        description="The sentence encoder: a folder or hub name, or its settings."
    )
    languages: dict[Name, EmbedLanguage] = Field(min_length=1, description="Language → its sentences.")
    student: Annotated[EmbedStudent, BeforeValidator(as_model)] = Field(
        description="The encoder that is trained: a folder or hub name, or its settings."
    )
    sentences: Sentences = Field(default_factory=Sentences)
    vectors: Vectors = Field(default_factory=Vectors)
    loss: Literal["cosine", "mse"] = Field(
        "cosine",
        description="`cosine`: 1 - cosine of the student's and the teacher's vector; `mse`: mean squared "
        "difference of their numbers.",
    )
    training: Arguments = Field(
        default_factory=dict, description="Arguments of `transformers.TrainingArguments`, by their own names."
    )
    evaluation: EmbedEvaluation = Field(default_factory=EmbedEvaluation)
    card: Card = Field(default_factory=Card)

    @property
    def texts(self) -> dict[str, Sources]:
        """Field of the recipe → the sources of training text."""
        return {f"languages.{name}.text": each.text for name, each in self.languages.items() if each.text}

    @property
    def models_read(self) -> list[str]:
        """Names and folders of the teacher and of the student's start."""
        return list(dict.fromkeys([self.teacher.model, self.student.model]))

    @property
    def models_made(self) -> list[Path]:
        """The student's folder."""
        return [self.folder / "student" / "final"]
