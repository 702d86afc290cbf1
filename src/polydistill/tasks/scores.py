"""Scores of fine-tuned models as counts per item, for the bootstrap: metrics, RDT and their intervals.

Every metric is a function of sums over a test set's items (sentences, texts, questions): an item has a row of
counts, and a metric uses the rows' sum. So a bootstrap sample is another sum of the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.tasks.squad import answer_scores

Counts = npt.NDArray[np.float64]
# Metrics by kind of task; the first selects the best checkpoint.
METRICS = {
    "ner": ("entity_f1", "macro_f1", "accuracy"),
    "pos": ("accuracy", "macro_f1"),
    "classification": ("accuracy", "macro_f1"),
    "pairs": ("accuracy", "macro_f1"),
    "choice": ("accuracy",),
    "qa": ("f1", "exact"),
}
# Samples x items drawn at once: tens of megabytes.
DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Items:
    """A test set's items as counts.

    counts  metric → [N, D] counts per item: [sum, number] for a mean, [right, predicted, gold] per class for
            an F1
    """

    counts: Mapping[str, Counts]

    def __len__(self) -> int:
        return len(next(iter(self.counts.values())))

    def scores(self) -> dict[str, float]:
        """Metric → score on the whole test set."""
        return {name: float(_score(name, rows.sum(0)[None])[0]) for name, rows in self.counts.items()}


def tag_items(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], kind: str) -> Items:
    """Sentences' tags: token macro-F1 and accuracy, for `ner` also entity F1 as in seqeval."""
    classes = sorted({tag for tags in (*gold, *predicted) for tag in tags})
    made = {
        "accuracy": np.array(
            [
                [sum(map(str.__eq__, right, guess)), len(right)]
                for right, guess in zip(gold, predicted, strict=True)
            ],
            dtype=np.float64,
        ),
        "macro_f1": _class_counts(gold, predicted, classes),
    }
    if kind == "ner":
        # Imported here, for it takes a second, which every command would wait for.
        from seqeval.metrics.sequence_labeling import get_entities

        rows = []
        for sentences in zip(gold, predicted, strict=True):
            right, guess = (set(get_entities(list(tags))) for tags in sentences)
            rows.append([len(right & guess), len(guess), len(right)])
        made["entity_f1"] = np.array(rows, dtype=np.float64)
    return Items({metric: made[metric] for metric in METRICS[kind]})


def label_items(gold: Sequence[str], predicted: Sequence[str], kind: str) -> Items:
    """Texts' classes: accuracy and macro-F1; for choices accuracy alone."""
    pairs = list(zip(gold, predicted, strict=True))
    made = {"accuracy": np.array([[right == guess, 1.0] for right, guess in pairs], dtype=np.float64)}
    if "macro_f1" in METRICS[kind]:
        classes = sorted({*gold, *predicted})
        made["macro_f1"] = _class_counts(
            [[label] for label in gold], [[label] for label in predicted], classes
        )
    return Items(made)


def answer_items(
    answers: Sequence[Sequence[str]], predicted: Sequence[str], language: str, *, mlqa: bool
) -> Items:
    """Questions' answers: F1 over words, and exact match."""
    scores = np.array(
        [
            answer_scores(guess, right, language, mlqa=mlqa)
            for right, guess in zip(answers, predicted, strict=True)
        ]
    )
    ones = np.ones(len(scores))
    return Items({"f1": np.stack([scores[:, 0], ones], 1), "exact": np.stack([scores[:, 1], ones], 1)})


def _class_counts(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], classes: Sequence[str]
) -> Counts:
    """[N, 3 C] right, predicted and gold tokens of each class."""
    columns = {name: 3 * index for index, name in enumerate(classes)}
    counts = np.zeros((len(gold), 3 * len(classes)))
    for row, sentences in enumerate(zip(gold, predicted, strict=True)):
        for right, guess in zip(*sentences, strict=True):
            counts[row, columns[right] + 2] += 1
            counts[row, columns[guess] + 1] += 1
            if right == guess:
                counts[row, columns[right]] += 1
    return counts


def _score(metric: str, sums: Counts) -> Counts:
    """[B] scores of [B, D] sums of counts."""
    if metric not in ("macro_f1", "entity_f1"):
        return np.asarray(sums[:, 0] / sums[:, 1])
    right, predicted, gold = sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]
    total = predicted + gold
    f1 = np.divide(2 * right, total, out=np.zeros_like(right), where=total > 0)
    # A class that occurs neither in a sample's texts nor in its predictions does not count.
    return np.asarray(f1.sum(1) / np.maximum(1, (total > 0).sum(1)))


def resample(
    items: Sequence[Items], metric: str, *, samples: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """[B, models] a metric on bootstrap samples of a test set's items, the same samples for all models.

    Raises ValueError if the models were not tested on the same number of items.
    """
    size = len(items[0])
    if any(len(other) != size for other in items):
        raise ValueError("the models were not tested on the same items")
    parts = []
    for start in range(0, samples, step := max(1, DRAWN_AT_ONCE // size)):
        drawn = generator.multinomial(size, np.full(size, 1 / size), size=min(step, samples - start))
        parts.append(np.stack([_score(metric, drawn @ model.counts[metric]) for model in items], 1))
    return np.concatenate(parts)


class SeedNoise(NamedTuple):
    """Variation of scores between seeds: standard deviation, degrees of freedom."""

    deviation: float
    freedom: int


def seed_noise(scores: Sequence[Sequence[float]], *, trainings: int) -> SeedNoise:
    """The pooled deviation of scores that differ only by the seed.

    scores     each model's and language's scores, one per seed
    trainings  number of groups with separate trainings: one training's scores on many languages count once
    Two or three seeds of one group barely determine its deviation; all groups of a table do.
    """
    groups = [np.asarray(group) for group in scores if len(group) > 1]
    if not groups:
        return SeedNoise(0.0, 0)
    freedom = sum(len(group) - 1 for group in groups)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return SeedNoise(float(np.sqrt(within / freedom)), max(1, round(freedom * trainings / len(scores))))


def chance_of_seeds(
    rows: int, seeds: int, noise: SeedNoise, generator: np.random.Generator, shared: np.random.Generator
) -> npt.NDArray[np.float64]:
    """[rows] samples of the error of a mean over `seeds` seeds.

    Student's t with the noise's degrees of freedom. Resampling the seeds is not enough: with n seeds it gives
    (n - 1) / n of the variance, and with two its 95 % interval covers the truth two times in three.

    generator  of this model's errors
    shared     of the uncertainty of the deviation, the same for all models that share it
    """
    if noise.freedom == 0:
        return np.zeros(rows)
    scale = np.sqrt(noise.freedom / shared.chisquare(noise.freedom, rows))
    return np.asarray(generator.standard_normal(rows) * scale * noise.deviation / np.sqrt(seeds))


class Sampled(NamedTuple):
    """Bootstrap samples of a score, mean over seeds.

    items   [B] the score on each sample of test items
    chance  [B] the error from the seeds, to be added
    """

    items: npt.NDArray[np.float64]
    chance: npt.NDArray[np.float64]

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """[B], clipped to the range of a score."""
        return np.clip(self.items + self.chance, 0.0, 1.0)


def sampled_deviation(
    student: Sampled, teacher: Sampled, *, mean: float, base: float
) -> npt.NDArray[np.float64]:
    """[B] samples of RDT in percent.

    The seeds' errors enter through the ratio's derivatives at the scores: added to a small score they could
    make a teacher's score negative.
    mean, base  student's and teacher's scores
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = student.items / teacher.items - 1
    return np.asarray(100 * (ratio + student.chance / base - mean * teacher.chance / base**2))


class Deviation(NamedTuple):
    """RDT in percent, positive where the student is better, its interval, and a verdict.

    verdict  `within` if the whole interval is above the bound, `below` if all of it is below, else `open`
    """

    value: float
    low: float
    high: float
    verdict: str


# A teacher below this score has not learned the task, so a ratio to it is meaningless.
LEARNED = 0.05


def relative_deviation(student: float, teacher: float) -> float:
    """How far a student's score is above its teacher's, in percent.

    The sign is that of MergeDistill's tables; its equation 3, as printed, has the opposite sign.
    """
    return 100 * (student - teacher) / teacher


def deviation(
    value: float, samples: npt.NDArray[np.float64], *, level: float, within: float
) -> Deviation | None:
    """RDT with the interval of its bootstrap samples [B]; None if the teacher's score is 0 in a sample."""
    if not np.isfinite(samples).all():
        return None
    low, high = interval(samples, level)
    verdict = "within" if low >= -within else "below" if high < -within else "open"
    return Deviation(value, low, high, verdict)


def interval(samples: npt.NDArray[np.float64], level: float) -> tuple[float, float]:
    """The central interval of samples, with `level` of them."""
    low, high = np.quantile(samples, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def items_of(kind: str, rows: Sequence[Mapping[str, Any]], language: str, *, mlqa: bool = False) -> Items:
    """Items of stored predictions: rows with `gold` and `predicted`."""
    gold, predicted = [row["gold"] for row in rows], [row["predicted"] for row in rows]
    if kind in ("ner", "pos"):
        return tag_items(gold, predicted, kind)
    if kind == "qa":
        return answer_items(gold, predicted, language, mlqa=mlqa)
    return label_items(gold, predicted, kind)
