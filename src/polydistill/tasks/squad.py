"""How a predicted answer is compared with the right ones: as SQuAD v1.1's script does, and as MLQA's."""

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
# Of each language that MLQA has (Lewis et al. 2020); Arabic's is a prefix and stands below.
ARTICLES = {
    "en": "a|an|the",
    "es": "un|una|unos|unas|el|la|los|las",
    "vi": "của|là|cái|chiếc|những",
    "de": "ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des",
}
# MLQA parts Chinese into the characters of this range; the other languages without spaces are ours.
_HAN = regex.compile(r"[\u4e00-\u9fa5]")
_APART = regex.compile(
    r"[\u4e00-\u9fa5]|[\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}\p{Script=Tibetan}]"
)


def uses_mlqa(language: str, normalisation: str) -> bool:
    """Whether a language's answers are compared as MLQA's script does.

    language       its code, also with a script or a region behind it (`zh-Hant`)
    normalisation  `squad`, `mlqa`, or `auto`: MLQA's for languages without spaces
    """
    return normalisation == "mlqa" or (normalisation == "auto" and _code(language) in SPACELESS)


def normalise(text: str, language: str, *, mlqa: bool) -> list[str]:
    """The words of an answer, by which it is compared.

    SQuAD v1.1 (Rajpurkar et al. 2016): lower case, no ASCII punctuation, no English articles, parted at spaces. MLQA: no
    punctuation of any script, the language's own articles, and characters apart where words have no spaces between them.
    """
    if not mlqa:
        kept = "".join(character for character in text.lower() if character not in string.punctuation)
        return re.sub(rf"\b(?:{ARTICLES['en']})\b", " ", kept).split()
    code = _code(language)
    kept = "".join(character for character in text.lower() if character not in _punctuation())
    if code == "ar":
        # The article is written as part of the word: taken away behind a blank or wherever it stands, as there.
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
    """(F1 of the words, exact match) of a predicted answer, each against the right answer that suits it best."""
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
    """All punctuation of Unicode, and ASCII's signs."""
    signs = {chr(n) for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n)).startswith("P")}
    return frozenset(signs | set(string.punctuation))
