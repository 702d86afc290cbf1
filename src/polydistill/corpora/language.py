"""Which language a text is in: a check of a recipe's names, if `polydistill[lid]` is installed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from itertools import islice
from typing import Any

# Lines that are looked at: long enough for the identifier, short enough for a plan.
LINES, SHORTEST, LONGEST = 100, 40, 300
# Languages that no identifier tells apart by a line.
_ALIKE = ({"no", "nb", "nn"}, {"hr", "sr", "bs"}, {"id", "ms"})


def can_identify(language: str) -> bool:
    """Whether the identifier is installed and knows a language, by its ISO 639-1 code (`sr-Latn`: `sr`)."""
    return find_spec("py3langid") is not None and _code(language) in _identifier().nb_classes


def other_language(language: str, lines: Iterable[str]) -> tuple[str, int, int] | None:
    """(the language that most lines are in, how many, of how many), if most are not in `language`.

    lines  the first LINES that are long enough are looked at; fewer than ten tell nothing
    """
    looked = [line[:LONGEST] for line in islice((line for line in lines if len(line) >= SHORTEST), LINES)]
    found = Counter(str(_identifier().classify(line)[0]) for line in looked)
    same = {_code(language)}.union(*(alike for alike in _ALIKE if _code(language) in alike))
    if len(looked) < 10 or sum(found[code] for code in same) * 2 >= len(looked):
        return None
    seeming, number = next(pair for pair in found.most_common() if pair[0] not in same)
    return seeming, number, len(looked)


def _code(language: str) -> str:
    return language.lower().replace("_", "-").partition("-")[0]


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
