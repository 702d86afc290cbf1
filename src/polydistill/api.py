"""The Python API: `import polydistill as pd; run = pd.run("mine.yaml"); run.results`.

Recipes in YAML and these functions have the same settings by the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydistill.artefacts import artefact_places
from polydistill.disk import read_json
from polydistill.errors import RunFolderError
from polydistill.pipelines.run import run_recipe
from polydistill.reports.card_embed import embed_rows
from polydistill.store.reader import Store

if TYPE_CHECKING:
    from rich.console import RenderableType
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from polydistill.config.shared import RunRecipe


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder, and what is in it."""

    folder: Path

    @property
    def student(self) -> Path:
        """The folder of the student, for `from_pretrained`; RunFolderError if the run has none."""
        place = self.folder / "student" / "final"
        if not place.is_dir():
            raise RunFolderError(
                str(self.folder), None, "has no student", "run the recipe to the stage `train` first"
            )
        return place

    @property
    def results(self) -> list[dict[str, Any]]:
        """The rows of the evaluation: language, text, model, tokenizer, MRR, loss and more; of an `embed`
        measure, on, items, values.

        `pandas.DataFrame(run.results)` is a table of them.
        """
        embedded = self.folder / "evaluation" / "embed.json"
        if embedded.is_file():
            return embed_rows(read_json(embedded, dict))
        languages = read_json(self.folder / "evaluation" / "mlm.json", dict)["languages"]
        return [{"language": language, **row} for language, rows in languages.items() for row in rows]

    @property
    def table(self) -> RenderableType:
        """The results as `polydistill run` prints them, for `rich.print`."""
        from polydistill.reports.tables import results_table

        return results_table(self.folder)

    @property
    def report(self) -> Path:
        """The page of the run."""
        return self.folder / "report" / "index.html"

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The student and its tokenizer."""
        from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

        # A sentence encoder's folder; sentence-transformers adds its pooling and what follows.
        sentences = (self.student / "modules.json").is_file()
        return (
            (AutoModel if sentences else AutoModelForMaskedLM).from_pretrained(self.student),
            AutoTokenizer.from_pretrained(self.student),
        )

    def store(self, language: str, teacher: str) -> Store:
        """A teacher's stored predictions of a language, of this run or of the one that it reuses."""
        places = artefact_places(self.folder)
        name = f"store/{language}/{teacher}"
        if name not in places:
            stores = ", ".join(place for place in places if place.startswith("store/")) or "none"
            raise RunFolderError(str(self.folder), None, f"has no {name}", f"use one of its stores: {stores}")
        return Store(places[name])


def run(
    recipe: str | Path | RunRecipe | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    until: str = "report",
    update: bool = False,
    show: Callable[[str], None] = print,
) -> FinishedRun:
    """Run a recipe: a YAML file, a preset's name, a loaded recipe, or its settings as a dictionary.

    overrides  `a.b=c` strings, as after `--set`
    until      the last stage: `corpora`, `tokenizer`, `adapt` (of `extract`), `score`, `train`, `evaluate` or
               `report`
    update     let the recipe of an existing folder change; what depends on the change is redone
    show       takes each line of progress
    """
    from polydistill.config.load import parse_recipe

    if isinstance(recipe, Mapping):
        recipe, overrides = parse_recipe(dict(recipe), overrides), ()
    return FinishedRun(run_recipe(recipe, overrides, until=until, update=update, show=show))


def merge(
    name: str,
    teachers: Mapping[str, str | Mapping[str, Any]],
    languages: Mapping[str, Mapping[str, Any]],
    **settings: Any,
) -> FinishedRun:
    """Merge teachers into one multilingual student.

    teachers   name → folder or hub name
    languages  language → `{"text": …, "teachers": …}`
    settings   the recipe's other keys: `student`, `distillation`, `training`, `output` and more
    """
    return run({"recipe": "merge", "name": name, "teachers": teachers, "languages": languages, **settings})


def extract(
    name: str, teacher: str | Mapping[str, Any], language: str, text: object, **settings: Any
) -> FinishedRun:
    """Extract a small student of one language from a multilingual teacher.

    settings  the recipe's other keys: `student`, `trim`, `losses`, `training`, `output` and more
    """
    given = {"recipe": "extract", "name": name, "teacher": teacher, "language": language, "text": text}
    return run(given | settings)


def balance(name: str, languages: Mapping[str, Mapping[str, Any]], **settings: Any) -> FinishedRun:
    """Train teachers of single languages, and students that learn from all of them alike.

    settings  the recipe's other keys: `teachers`, `students`, `groups`, `training`, `output` and more
    """
    return run({"recipe": "balance", "name": name, "languages": languages, **settings})


def pretrain(name: str, languages: Mapping[str, Mapping[str, Any]], **settings: Any) -> FinishedRun:
    """Pre-train a masked language model and its WordPiece on text."""
    return run({"recipe": "pretrain", "name": name, "languages": languages, **settings})


def embed(
    name: str,
    teacher: str | Mapping[str, Any],
    languages: Mapping[str, Mapping[str, Any]],
    student: str | Mapping[str, Any],
    **settings: Any,
) -> FinishedRun:
    """Distil a sentence encoder's vectors into a small student.

    languages  language → `{"text": …}`, `{"translations": …}` or both
    student    the encoder that is trained: a folder or hub name, or its settings
    settings   the recipe's other keys: `loss`, `evaluation`, `training`, `output` and more
    """
    given = {"recipe": "embed", "name": name, "teacher": teacher, "languages": languages, "student": student}
    return run(given | settings)
