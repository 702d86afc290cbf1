"""The summary of an evaluation: MRR, and the measure D with its intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.evaluation.uncertainty import paired_difference

# The name of a language's teacher among the compared models.
TEACHER = "teacher"
# Half the 95 % interval of a normal distribution, in standard deviations.
NORMAL_95 = 1.959964


class HeldOut(NamedTuple):
    """Several models' results on the same masked tokens of a language's held-out text.

    reciprocal  model → [M] reciprocal ranks; TEACHER, if there is one, is among the models
    counts      [E] masked tokens of each example
    """

    reciprocal: Mapping[str, npt.NDArray[np.float64]]
    counts: npt.NDArray[np.int64]


def summarise(languages: Mapping[str, HeldOut], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """MRR and D of each group of languages on held-out text, `all` languages first.

    groups  name → its languages
    `mrr`: model → group → mean over languages. `D` (balanced-2022, eq. 3): student → group → mean over
    languages of its MRR minus the teacher's, with a 95 % interval. `differences`: the first student's MRR
    minus each other student's. The intervals reflect sampling of the text (bootstrap over examples, languages
    independent), not variation between seeds.
    """
    members = {"all": list(languages)} | {
        name: [language for language in chosen if language in languages] for name, chosen in groups.items()
    }
    members = {name: chosen for name, chosen in members.items() if chosen}
    models = list(dict.fromkeys(model for results in languages.values() for model in results.reciprocal))
    students = [model for model in models if model != TEACHER]

    def against(model: str, other: str) -> dict[str, dict[str, float]]:
        pairs = {
            language: paired_difference(results.reciprocal[model], results.reciprocal[other], results.counts)
            for language, results in languages.items()
        }
        rows = {}
        for group, chosen in members.items():
            value = float(np.mean([pairs[language].value for language in chosen]))
            errors = [(pairs[language].high - pairs[language].low) / (2 * NORMAL_95) for language in chosen]
            half = NORMAL_95 * float(np.sqrt(np.sum(np.square(errors)))) / len(chosen)
            rows[group] = {"value": value, "low": value - half, "high": value + half}
        return rows

    return {
        "mrr": {
            model: {
                group: float(np.mean([languages[language].reciprocal[model].mean() for language in chosen]))
                for group, chosen in members.items()
            }
            for model in models
        },
        "D": {student: against(student, TEACHER) for student in students} if TEACHER in models else {},
        "differences": {other: against(students[0], other) for other in students[1:]},
        "first": students[0] if students else None,
    }
