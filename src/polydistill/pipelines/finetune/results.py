"""Fine-tuned models' scores side by side: means over seeds, RDT, and intervals of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polydistill.config.finetune import FinetuneRecipe, Task
from polydistill.disk import Json, hash_text, read_json, write_json
from polydistill.evaluation.verdicts import verdict
from polydistill.pipelines.finetune.cost import finetuning_compute
from polydistill.pipelines.finetune.groups import Score, group_averages
from polydistill.pipelines.finetune.jobs import Job
from polydistill.tasks.predictions import predicted_items
from polydistill.tasks.scores import (
    LEARNED,
    METRICS,
    Items,
    Sampled,
    chance_of_seeds,
    deviation,
    interval,
    relative_deviation,
    resample,
    sampled_deviation,
    seed_noise,
)

FILE = "finetune.json"
Samples = npt.NDArray[np.float64]


class Results:
    """The results of finished jobs."""

    def __init__(self, recipe: FinetuneRecipe, num_jobs: int, notes: list[str]) -> None:
        self.recipe, self.num_jobs, self.notes = recipe, num_jobs, notes
        self.jobs: list[tuple[Job, Path]] = []

    def add(self, job: Job, folder: Path) -> None:
        """Add a finished job."""
        self.jobs.append((job, folder))

    def write(self, run: Path, *, summarised: bool = False) -> None:
        """Write evaluation/finetune.json: scores so far; with `summarised` also means, intervals and RDT."""
        results: Json = {
            "jobs": self.num_jobs,
            "done": len(self.jobs),
            "notes": self.notes,
            "teachers": self.recipe.teachers,
            "tasks": {
                name: {"kind": task.kind, "setting": task.setting, "metrics": METRICS[task.kind]}
                for name, task in self.recipe.tasks.items()
            },
            "scores": self._scores(),
        }
        if summarised:
            results |= self._summary() | {"compute": finetuning_compute(self.recipe, self.jobs, run)}
        write_json(run / "evaluation" / FILE, results, sealed=True)

    def _scores(self) -> Json:
        """task → model → target → metric → one score per seed."""
        cells: Json = {}
        for job, folder in self.jobs:
            for target, scores in read_json(folder / "scores.json")["scores"].items():
                cell = (
                    cells.setdefault(job.texts.name, {}).setdefault(job.model.name, {}).setdefault(target, {})
                )
                for metric in METRICS[job.texts.task.kind]:
                    cell.setdefault(metric, []).append(scores[metric])
                cell["items"] = scores["items"]
        return cells

    def _summary(self) -> Json:
        summary: Json = {}
        rdt: Json = {}
        by_teacher: Json = {}
        scores: dict[str, dict[str, dict[str, dict[str, Score]]]] = {}
        # model → bootstrap samples of each task's average RDT by its first metric.
        averages: dict[str, list[tuple[float, Samples]]] = {}
        for name, task in self.recipe.tasks.items():
            items = self._items(name, task)
            for metric in METRICS[task.kind]:
                samples = self._samples(name, task, items, metric)
                of_metric = {
                    model: {
                        target: Score(
                            float(np.mean([sample.scores()[metric] for sample in items[model][target]])),
                            samples[model][target],
                        )
                        for target in targets
                    }
                    for model, targets in items.items()
                }
                scores.setdefault(name, {})[metric] = of_metric
                summary.setdefault(name, {})[metric] = {
                    model: {
                        target: self._cell(of_metric[model][target], items[model][target], metric)
                        for target in targets
                    }
                    for model, targets in items.items()
                }
                deviations, averaged = self._deviations(of_metric)
                rdt.setdefault(name, {})[metric] = deviations
                by_teacher.setdefault(name, {})[metric] = self._by_teacher(of_metric)
                if metric == METRICS[task.kind][0]:
                    for model, pair in averaged.items():
                        averages.setdefault(model, []).append(pair)
        return {
            "summary": summary,
            "learned": LEARNED,
            "knows": "seeds and items" if self.recipe.num_seeds > 1 else "items",
            "rdt": rdt,
            "rdt_by_teacher": by_teacher,
            "rdt_average": {
                model: self._deviation(
                    float(np.mean([value for value, _ in pairs])),
                    np.mean([drawn for _, drawn in pairs], axis=0),
                )
                | {"tasks": len(pairs)}
                for model, pairs in averages.items()
            },
            "groups": group_averages(self.recipe, scores, self._deviation),
        }

    def _items(self, name: str, task: Task) -> dict[str, dict[str, list[Items]]]:
        """model → target → the items of each seed."""
        items: dict[str, dict[str, list[Items]]] = {}
        for job, folder in self.jobs:
            if job.texts.name != name:
                continue
            for target in job.targets:
                of_job = predicted_items(folder, task, target)
                items.setdefault(job.model.name, {}).setdefault(target, []).append(of_job)
        return items

    def _samples(
        self, name: str, task: Task, items: dict[str, dict[str, list[Items]]], metric: str
    ) -> dict[str, dict[str, Sampled]]:
        """model → target → bootstrap samples of the mean over seeds, with the variation between seeds.

        The sampled test items are the same for all models, and for all tasks that have this test set.
        """
        samples: dict[str, dict[str, Sampled]] = {model: {} for model in items}
        noise = seed_noise(
            [
                [item.scores()[metric] for item in each]
                for targets in items.values()
                for each in targets.values()
            ],
            trainings=sum(1 if task.source else len(targets) for targets in items.values()),
        )
        for target in task.data:
            owners = [(model, item) for model in items for item in items[model].get(target, [])]
            if not owners:
                continue
            drawn = resample(
                [item for _, item in owners],
                metric,
                samples=self.recipe.bootstrap_samples,
                generator=self._generator(self._drawn_items(name, task, target)),
            )
            for model in items:
                columns = [index for index, (owner, _) in enumerate(owners) if owner == model]
                if columns:
                    # Languages with one source share its training, and so that training's variation.
                    source = task.source or target
                    chance = chance_of_seeds(
                        len(drawn),
                        len(columns),
                        noise,
                        self._generator(name, model, source),
                        self._generator(name, metric),
                    )
                    samples[model][target] = Sampled(drawn[:, columns].mean(1), chance)
        return samples

    def _drawn_items(self, name: str, task: Task, target: str) -> str:
        """A key of which test items are drawn: test sets with one key are drawn together."""
        if task.parallel:
            return f"parallel {name}"
        texts = next(job.texts for job, _ in self.jobs if job.texts.name == name)
        return texts.identity(target, "test")

    def _generator(self, *names: str) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, *(hash_text(name) for name in names)])

    def _cell(self, score: Score, items: list[Items], metric: str) -> Json:
        each = [item.scores()[metric] for item in items]
        low, high = interval(score.samples.scores, self.recipe.level)
        return {
            "mean": score.value,
            "deviation": float(np.std(each, ddof=1)) if len(each) > 1 else 0.0,
            "low": low,
            "high": high,
            "seeds": len(each),
            "items": len(items[0]),
        }

    def _deviations(
        self, scores: Mapping[str, Mapping[str, Score]], from_teacher: str | None = None
    ) -> tuple[Json, dict[str, tuple[float, Samples]]]:
        """(model → language, and `all`, → RDT; model → its average and that average's samples).

        from_teacher  only in its languages; None: from each language's first teacher
        """
        deviations: Json = {}
        averages: dict[str, tuple[float, Samples]] = {}
        for model, targets in scores.items():
            values, drawn = [], []
            for target, score in targets.items():
                teachers = self.recipe.teachers_of(target, scores)
                teacher = from_teacher if from_teacher in teachers else next(iter(teachers), None)
                if teacher in (None, model) or from_teacher not in (None, teacher):
                    continue
                base = scores[teacher][target]
                if base.value < LEARNED:
                    deviations.setdefault(model, {})[target] = {
                        "teacher": teacher,
                        "value": None,
                        "base": base.value,
                    }
                    continue
                ratio = sampled_deviation(score.samples, base.samples, mean=score.value, base=base.value)
                value = relative_deviation(score.value, base.value)
                deviations.setdefault(model, {})[target] = {
                    "teacher": teacher,
                    **self._deviation(value, ratio),
                }
                values.append(value)
                drawn.append(ratio)
            if values:
                averages[model] = float(np.mean(values)), np.mean(drawn, axis=0)
                deviations[model]["all"] = {"languages": len(values), **self._deviation(*averages[model])}
        return deviations, averages

    def _by_teacher(self, scores: Mapping[str, Mapping[str, Score]]) -> Json:
        """Teacher → model → language, and `all`, → RDT; {} unless a language has several teachers."""
        targets = dict.fromkeys(target for cells in scores.values() for target in cells)
        each = [self.recipe.teachers_of(target, scores) for target in targets]
        if all(len(teachers) < 2 for teachers in each):
            return {}
        names = dict.fromkeys(teacher for teachers in each for teacher in teachers)
        return {name: self._deviations(scores, name)[0] for name in names}

    def _deviation(self, value: float, samples: Samples) -> Json:
        result = deviation(value, samples, level=self.recipe.level, within=self.recipe.within_percent)
        if result is None:
            return {"value": value}
        margin = self.recipe.equivalence_margin
        return {**result._asdict(), "judgement": verdict(result.low, result.high, margin)}
