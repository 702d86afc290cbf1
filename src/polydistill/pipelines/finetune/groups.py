"""Averages over groups of languages and over tasks, and their RDT from each teacher.

As in MergeDistill's table 4, RDT here is that of two averages (its 17.9 is 100 (69.3 - 58.8) / 58.8), not the
mean of the languages' RDTs (equation 3), which `rdt` has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.config.finetune import FinetuneRecipe
from polydistill.config.groups import ALL
from polydistill.disk import Json
from polydistill.tasks.scores import (
    LEARNED,
    METRICS,
    Sampled,
    interval,
    relative_deviation,
    sampled_deviation,
)


class Score(NamedTuple):
    """A score, its bootstrap samples, and how many scores it is the mean of."""

    value: float
    samples: Sampled
    number: int = 1


# Task → metric → model → language → its score.
Scores = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Score]]]]
# (RDT of two scores, its samples) → RDT with its interval and verdicts.
Deviate = Callable[[float, npt.NDArray[np.float64]], Json]


def averaged(scores: Sequence[Score]) -> Score:
    """The mean of scores. Samples are averaged sample by sample: what was drawn jointly stays joint."""
    return Score(
        float(np.mean([score.value for score in scores])),
        Sampled(
            np.mean([score.samples.items for score in scores], axis=0),
            np.mean([score.samples.chance for score in scores], axis=0),
        ),
        len(scores),
    )


def group_averages(recipe: FinetuneRecipe, scores: Scores, deviate: Deviate) -> Json:
    """Group → its languages, its averages in each task and metric, and over tasks (the first metrics).

    A model has an average where it has scores in all of the group's languages that the task has, and a
    teacher's RDT where it is a teacher in all of them. `all` has every language of the tasks.
    """
    languages = dict.fromkeys(language for task in recipe.tasks.values() for language in task.data)
    groups = {**recipe.groups, ALL: list(languages)}
    return {
        name: {"languages": list(members), **_of_group(recipe, members, scores, deviate)}
        for name, members in groups.items()
    }


def _of_group(recipe: FinetuneRecipe, members: Sequence[str], scores: Scores, deviate: Deviate) -> Json:
    tasks: Json = {}
    firsts: list[dict[str, Score]] = []
    teachers_of_tasks: list[list[str]] = []
    for task, metrics in scores.items():
        chosen = [language for language in members if language in recipe.tasks[task].data]
        if not chosen:
            continue
        first = METRICS[recipe.tasks[task].kind][0]
        teachers = _teachers(recipe, chosen, metrics[first])
        tables: Json = {}
        for metric, models in metrics.items():
            averages = {
                model: averaged([cells[language] for language in chosen])
                for model, cells in models.items()
                if all(language in cells for language in chosen)
            }
            tables[metric] = _table(recipe, averages, teachers, deviate)
            if metric == first:
                firsts.append(averages)
        teachers_of_tasks.append(teachers)
        tasks[task] = {"languages": chosen, "metrics": tables}
    everywhere = {
        model: averaged([averages[model] for averages in firsts])
        for model in recipe.models
        if firsts and all(model in averages for averages in firsts)
    }
    common = [name for name in recipe.models if all(name in names for names in teachers_of_tasks)]
    return {"tasks": tasks, "average": _table(recipe, everywhere, common, deviate)}


def _teachers(
    recipe: FinetuneRecipe, languages: Sequence[str], models: Mapping[str, Mapping[str, Score]]
) -> list[str]:
    """The models that are a teacher in all of these languages."""
    each = [recipe.teachers_of(language, models) for language in languages]
    return [name for name in recipe.models if all(name in teachers for teachers in each)]


def _table(
    recipe: FinetuneRecipe, averages: Mapping[str, Score], teachers: Sequence[str], deviate: Deviate
) -> Json:
    """`scores`: model → its average. `rdt`: teacher → model → RDT of the averages."""
    scores: Json = {}
    for model, score in averages.items():
        low, high = interval(score.samples.scores, recipe.level)
        scores[model] = {"mean": score.value, "low": low, "high": high, "number": score.number}
    rdt: Json = {}
    for teacher in [name for name in teachers if name in averages]:
        base = averages[teacher]
        rdt[teacher] = {
            model: {"value": None, "base": base.value}
            if base.value < LEARNED
            else deviate(
                relative_deviation(score.value, base.value),
                sampled_deviation(score.samples, base.samples, mean=score.value, base=base.value),
            )
            for model, score in averages.items()
            if model != teacher
        }
    return {"scores": scores, "rdt": rdt}
