"""How often each language is sampled."""

from __future__ import annotations

from collections.abc import Mapping

from polydistill.errors import CorpusError


def smoothed_probabilities(counts: Mapping[str, int], alpha: float) -> dict[str, float]:
    """Probabilities of languages, proportional to count ** alpha (exponential smoothing; Devlin et al. 2019).

    alpha  1 keeps the shares of the text, 0 samples all languages equally
    """
    for language, count in counts.items():
        if count <= 0:
            raise CorpusError(f"languages.{language}", None, "has no examples", "give it text, or remove it")
    powers = {language: float(count) ** alpha for language, count in counts.items()}
    total = sum(powers.values())
    return {language: power / total for language, power in powers.items()}
