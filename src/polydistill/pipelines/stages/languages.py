"""In `plan`: texts that seem to be in another language than the recipe says."""

from __future__ import annotations

from polydistill.config.shared import Source, TextRecipe
from polydistill.corpora.language import can_identify, other_language
from polydistill.corpora.sources import read_texts
from polydistill.errors import CorpusError
from polydistill.pipelines.stages.conflicts import Conflict


def wrong_languages(recipe: TextRecipe) -> list[Conflict]:
    """A conflict for each source most of whose first lines are in another language.

    Nothing is said of languages that have no ISO 639-1 code, or if py3langid is not installed.
    """
    conflicts = []
    for place, sources in recipe.texts.items():
        parts = place.split(".")
        language = parts[1] if parts[0] == "languages" else str(getattr(recipe, "language", ""))
        if not can_identify(language):
            continue
        for index, source in enumerate(sources):
            found = other_language(language, _lines(source, f"{place}[{index}]"))
            if found is not None:
                seeming, number, looked = found
                conflicts.append(
                    Conflict(
                        f"{place}[{index}] {source.path or source.dataset!r}: {number} of its first {looked} "
                        f"long lines seem to be in {seeming!r}, not in {language!r}",
                        f"look at the text, or name the language {seeming!r}",
                    )
                )
    return conflicts


def _lines(source: Source, place: str) -> list[str]:
    """The first lines of a source; none if it cannot be read, which another check says."""
    lines: list[str] = []
    try:
        for text in read_texts([source], place):
            lines += text.split("\n")
            if len(lines) > 2000:
                break
    except CorpusError:
        return []
    return lines
