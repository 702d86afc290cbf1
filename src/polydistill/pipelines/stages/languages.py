"""In `plan`: texts that seem to be in another language, or other characters, than the recipe says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from polydistill.config.shared import RunRecipe, Source
from polydistill.corpora.chinese import Script, count_scripts, named_script
from polydistill.corpora.language import can_identify, other_language
from polydistill.corpora.sources import read_texts
from polydistill.errors import CorpusError
from polydistill.pipelines.stages.conflicts import Conflict

# A second script in more than this share of a Chinese text's lines is named.
MIXED = 0.1


def wrong_languages(recipe: RunRecipe) -> list[Conflict]:
    """A conflict for each source most of whose first lines are in another language or in other characters.

    Nothing is said of languages that have no ISO 639-1 code, or if py3langid is not installed; Chinese
    characters are always looked at.
    """
    conflicts = _chinese_scripts(recipe)
    for place, sources in recipe.texts.items():
        language = _language(recipe, place)
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


def _language(recipe: RunRecipe, place: str) -> str:
    """The language of a field with text."""
    parts = place.split(".")
    return parts[1] if parts[0] == "languages" else str(getattr(recipe, "language", ""))


def _chinese_scripts(recipe: RunRecipe) -> list[Conflict]:
    """Conflicts of Chinese texts that mix simplified and traditional characters, or evaluate on others.

    A sentence in both is two sentences to every check for repeats, of training and of held-out text.
    """
    conflicts: list[Conflict] = []
    # Language → the script of its training text, which comes first.
    scripts: dict[str, Script] = {}
    for place, sources in (recipe.texts | recipe.further_texts).items():
        language = _language(recipe, place)
        if not _is_chinese(language) or not (found := _count(sources, place)):
            continue
        trains = place in recipe.texts
        main = scripts.setdefault(language, named_script(language) or found.most_common(1)[0][0])
        others = found.total() - found[main]
        if others > MIXED * found.total():
            what = f"{place}: {others} of {found.total()} lines are not in {main} characters"
            conflicts.append(
                Conflict(
                    what if trains else f"{what}, as the training text is",
                    "convert them (OpenCC does), or make them a language of their own: zh-Hans, zh-Hant"
                    if trains
                    else "convert the text (OpenCC does), or read its figures as those of another script",
                )
            )
    return conflicts


def _is_chinese(language: str) -> bool:
    return language.lower().replace("_", "-").partition("-")[0] in {"zh", "cmn", "yue"}


def _count(sources: Sequence[Source], place: str) -> Counter[Script]:
    return sum(
        (count_scripts(_lines(source, f"{place}[{index}]")) for index, source in enumerate(sources)),
        Counter[Script](),
    )


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
