"""Scripts of characters, and which of them a text writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache

import regex

from polydistill.errors import RecipeError

# Unicode's names of the scripts in daily use (UAX 31, tables 5 and 7), those of no script aside. A character
# of any other script is of OTHER.
SCRIPTS = (
    *("Latin", "Greek", "Cyrillic", "Armenian", "Hebrew", "Arabic", "Syriac", "Thaana", "Nko", "Tifinagh"),
    *("Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam"),
    *("Sinhala", "Thai", "Lao", "Tibetan", "Myanmar", "Khmer", "Javanese", "Balinese", "Georgian"),
    *("Ethiopic", "Mongolian", "Cherokee", "Canadian_Aboriginal", "Hangul", "Hiragana", "Katakana"),
    *("Bopomofo", "Han", "Yi"),
)
OTHER = "Other"
# Names, formulas and addresses are written in it everywhere.
ALWAYS = ("Latin",)
# A script with a smaller share of the letters of every language's text is not one of these languages'.
LEAST_SHARE = 0.001

_SCRIPT = regex.compile("|".join(rf"(?P<{name}>\p{{Script={name}}})" for name in SCRIPTS))
# Digits, punctuation, symbols, marks that take the script of their letter, and what Unicode has not assigned.
_NONE = regex.compile(r"[\p{Script=Common}\p{Script=Inherited}\p{Script=Unknown}]")


@cache
def script_of(character: str) -> str | None:
    """The script of one character; None if it belongs to none, as digits and punctuation do."""
    found = _SCRIPT.match(character)
    if found:
        return str(found.lastgroup)
    return None if _NONE.match(character) else OTHER


def count_characters(texts: Iterable[str], counts: Counter[str]) -> Iterator[str]:
    """Yield the texts, and add their characters to `counts`."""
    for text in texts:
        counts.update(text)
        yield text


def script_shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Script → its share of the characters that have a script, largest first."""
    scripts: Counter[str] = Counter()
    for character, number in counts.items():
        script = script_of(character)
        if script:
            scripts[script] += number
    total = max(1, scripts.total())
    return {script: number / total for script, number in scripts.most_common()}


def written_scripts(shares: Iterable[Mapping[str, float]], keep: Collection[str] = ()) -> set[str]:
    """The scripts of some languages: ALWAYS, `keep`, and those with LEAST_SHARE of a language's letters.

    shares  of each language, of `script_shares`
    """
    written = {script for each in shares for script, share in each.items() if share >= LEAST_SHARE}
    return written | set(ALWAYS) | set(keep)


def check_scripts(names: Sequence[str], field: str) -> None:
    """Raise RecipeError for a name that is none of SCRIPTS."""
    for name in names:
        if name not in SCRIPTS:
            raise RecipeError(field, name, "is not a script's name", f"give one of {', '.join(SCRIPTS)}")
