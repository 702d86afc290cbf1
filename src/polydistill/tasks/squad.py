"""Comparison of a predicted answer with the right ones, as in the scripts of SQuAD v1.1 and MLQA."""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

import regex

# Languages that are written without spaces between words.
SPACELESS = ("zh", "yue", "wuu", "ja", "th", "lo", "km", "my", "bo", "dz")
# By language of MLQA (Lewis et al. 2020); Arabic's article is a prefix, see `normalise`.
ARTICLES = {
    "en": "a|an|the",
    "es": "un|una|unos|unas|el|la|los|las",
    "vi": "của|là|cái|chiếc|những",
    "de": "ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des",
}
# MLQA splits Chinese into characters of this range; the other languages without spaces are our extension.
_HAN = regex.compile(r"[\u4e00-\u9fa5]")
_APART = regex.compile(
    r"[\u4e00-\u9fa5]|[\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}\p{Script=Tibetan}]"
)


def uses_mlqa(language: str, normalisation: str) -> bool:
    """Whether a language's answers are normalised as in MLQA's script.

    language       its code, perhaps followed by a script or a region (`zh-Hant`)
    normalisation  `squad`, `mlqa`, or `auto`: MLQA's for languages without spaces
    """
    return normalisation == "mlqa" or (normalisation == "auto" and _code(language) in SPACELESS)


def normalise(text: str, language: str, *, mlqa: bool) -> list[str]:
    """The words of an answer, for comparison.

    SQuAD v1.1 (Rajpurkar et al. 2016): lower case, without ASCII punctuation and English articles, split at
    spaces. MLQA: without punctuation of any script and the language's own articles; languages without spaces
    are split into characters.
    """
    if not mlqa:
        kept = "".join(character for character in text.lower() if character not in string.punctuation)
        return re.sub(rf"\b(?:{ARTICLES['en']})\b", " ", kept).split()
    code = _code(language)
    kept = "".join(character for character in text.lower() if character not in _punctuation())
    if code == "ar":
        # The article is part of the word; as in MLQA's script, it is removed after a space or anywhere.
        kept = re.sub(r"\sال^|ال", " ", kept)
    elif code in ARTICLES:
        kept = re.sub(rf"\b(?:{ARTICLES[code]})\b", " ", kept)
    if code in SPACELESS:
        apart = _HAN if code in ("zh", "yue", "wuu") else _APART
        kept = apart.sub(lambda match: f" {match.group()} ", kept)
    return kept.split()


def answer_scores(
    predicted: str, answers: Sequence[str], language: str, *, mlqa: bool
) -> tuple[float, float]:
    """(F1 over words, exact match) of a predicted answer, each the best over the right answers."""
    words = normalise(predicted, language, mlqa=mlqa)
    f1 = exact = 0.0
    for answer in answers:
        right = normalise(answer, language, mlqa=mlqa)
        shared = (Counter(words) & Counter(right)).total()
        f1 = max(f1, 2 * shared / (len(words) + len(right)) if shared else 0.0)
        exact = max(exact, float(words == right))
    return f1, exact


def _code(language: str) -> str:
    return re.split(r"[-_.]", language.lower(), maxsplit=1)[0]


@cache
def _punctuation() -> frozenset[str]:
    """All punctuation of Unicode, and ASCII's symbols."""
    signs = {chr(n) for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n)).startswith("P")}
    return frozenset(signs | set(string.punctuation))
