"""The state that the stages of a balance run share: vocabulary, corpora, each model's examples."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polydistill.config.balance import BalanceRecipe
from polydistill.config.shared import Arguments
from polydistill.corpora.examples import Examples
from polydistill.disk import Json
from polydistill.errors import CorpusError, RecipeError
from polydistill.pipelines.run_folder import Artefact, Run
from polydistill.pipelines.stages.tokenizer import build_tokenizer, shared_tokenizer
from polydistill.tokenization.load import LoadedTokenizer

# The random choice of examples is independent of all other random draws.
CHOICE_SEED = 11


@dataclass
class Balance:
    """The state of a balance run.

    until      the last stage of the run
    probe      tasks of its probes to run; None: all
    corpora    language → its corpus, once built
    teachers   language → its teacher's folder, once trained
    stores     language → the store of its teacher's predictions, once scored
    """

    recipe: BalanceRecipe
    run: Run
    until: str = "report"
    probe: Sequence[str] | None = None
    corpora: dict[str, Artefact] = field(default_factory=dict)
    teachers: dict[str, Path] = field(default_factory=dict)
    stores: dict[str, Artefact] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> LoadedTokenizer:
        """The vocabulary of all models; made if it is missing."""
        return vocabulary(self.recipe, self.run)

    @cached_property
    def texts(self) -> dict[str, LanguageText]:
        """Each language's training examples, capped at `max_characters`; CorpusError if there are fewer."""
        texts = {}
        for language, settings in self.recipe.languages.items():
            text = LanguageText(Examples(self.corpora[language].path / "train.arrow"), self.recipe.seed)
            cap = settings.max_characters
            if cap is not None and cap > text.characters[-1]:
                raise CorpusError(
                    f"languages.{language}.max_characters",
                    cap,
                    f"the training text has {text.characters[-1]:,} characters (cleaned, held-out text left "
                    "out)",
                    "ask for fewer, leave it out, or add text",
                )
            texts[language] = text.upto(cap)
        return texts

    @property
    def smallest(self) -> int:
        """Characters of the smallest language's training text."""
        return min(text.total for text in self.texts.values())

    def truncated(self, truncate: str | int) -> dict[str, LanguageText]:
        """Each language's examples for a student: `smallest`, `none` or a number of characters."""
        if truncate == "none":
            return self.texts
        limit = self.smallest if truncate == "smallest" else int(truncate)
        return {language: text.upto(limit) for language, text in self.texts.items()}

    def held_out(self, language: str) -> tuple[Examples, Examples]:
        """(examples for early stopping, examples for the results): no example is both."""
        examples = Examples(self.corpora[language].path / "held_out.arrow")
        # Split by a bit of the hash of their text.
        for_stopping = (examples.ids & np.uint64(1)).astype(bool)
        parts = [examples.take(np.flatnonzero(chosen)) for chosen in (for_stopping, ~for_stopping)]
        if not all(len(part) for part in parts):
            raise CorpusError(
                f"languages.{language}.text",
                None,
                f"{len(examples)} held-out examples are too few to split between early stopping and results",
                "add text, lower corpora.block_lines or raise corpora.held_out_share",
            )
        return parts[0], parts[1]

    def identity(self, language: str) -> Json:
        """The identity of a language's capped text."""
        return {
            "corpus": self.corpora[language].fingerprint,
            "max_characters": self.recipe.languages[language].max_characters,
            "seed": self.recipe.seed,
        }


class LanguageText:
    """Training examples of a language in a random order, and how many of them are taken.

    A smaller part is the beginning of a larger one, so a teacher has seen all that its student sees.
    """

    def __init__(self, examples: Examples, seed: int) -> None:
        self.examples, self.taken = examples, len(examples)
        self.order = np.random.default_rng([seed, CHOICE_SEED]).permutation(len(examples))
        # [N] characters up to and including each example.
        self.characters: npt.NDArray[np.int64] = np.cumsum(examples.num_characters[self.order])

    def upto(self, limit: int | None) -> LanguageText:
        """The first examples up to a number of characters; at least one."""
        part = copy.copy(self)
        if limit is not None:
            fitting = int(np.searchsorted(self.characters, limit, side="right"))
            part.taken = max(1, min(self.taken, fitting))
        return part

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """[n] the taken examples' rows."""
        return self.order[: self.taken]

    @property
    def total(self) -> int:
        """Characters of the taken examples."""
        return int(self.characters[self.taken - 1])


def steps_of(epochs: float | None, examples: int, arguments: Arguments) -> int:
    """Steps for `epochs` over that many examples; `max_steps` if `epochs` is None."""
    if epochs is None:
        return int(arguments["max_steps"])
    batch = int(arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"])
    return max(1, math.ceil(epochs * examples / batch))


def vocabulary(recipe: BalanceRecipe, run: Run) -> LoadedTokenizer:
    """The tokenizer of all models: trained on all text, or taken from an earlier run."""
    folder = recipe.tokenizer.vocabulary
    if folder is None:
        return build_tokenizer(recipe, run)
    try:
        source = shared_tokenizer(recipe, Path(folder))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise RecipeError(
            "tokenizer.vocabulary",
            folder,
            f"holds no tokenizer of an earlier run ({error})",
            "name a run's `tokenizer` folder or one of its models' folders, or leave it out",
        ) from error

    def write(copy: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(folder) / name, copy)

    inputs = {"stage": "vocabulary", "tokenizer": source.fingerprint}
    return shared_tokenizer(recipe, run.make("tokenizer", inputs, write).path)
