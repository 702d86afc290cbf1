"""The recipe `pretrain`: every setting with its default and meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from polydistill.config.settings import Name, Settings, TextName
from polydistill.config.shared import Model, Source, Sources, TextRecipe, WordPiece


class PretrainLanguage(Settings):
    """One language of a model that is pre-trained on text."""

    text: Sources = Field(description="One or more sources of text.")
    evaluation: dict[TextName, Sources] = Field(
        default_factory=dict, description="Further evaluation texts, by name."
    )


class PretrainRecipe(TextRecipe):
    """Text in, one masked language model with its own WordPiece out."""

    recipe: Literal["pretrain"] = "pretrain"
    languages: dict[Name, PretrainLanguage] = Field(min_length=1, description="Language → its text.")
    tokenizer: WordPiece = Field(default_factory=WordPiece)
    model: Model = Field(default_factory=Model)

    @property
    def texts(self) -> dict[str, list[Source]]:
        """Field of the recipe → the sources of training text."""
        return {f"languages.{name}.text": language.text for name, language in self.languages.items()}

    @property
    def models_made(self) -> list[Path]:
        """The model's folder."""
        return [self.folder / "student" / "final"]
