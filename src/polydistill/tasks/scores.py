"""What fine-tuned models score, item by item, so that scores can be drawn again: metrics, RDT, their intervals.

Every metric is a function of sums over a test set's items (sentences, texts, questions): an item has a row of counts, a
metric reads the rows' sum. A bootstrap sample is then another sum of the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.tasks.squad import answer_scores

Counts = npt.NDArray[np.float64]
# Of each kind of task; the first decides which checkpoint is best.
METRICS = {
    "ner": ("entity_f1", "macro_f1", "accuracy"),
    "pos": ("accuracy", "macro_f1"),
    "classification": ("accuracy", "macro_f1"),
    "pairs": ("accuracy", "macro_f1"),
    "choice": ("accuracy",),
    "qa": ("f1", "exact"),
}
# Counts of so many items at once: samples x items, which fills tens of megabytes.
DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Items:
    """A test set's items as counts.

    counts  metric → [N, D] counts of each item; of a mean, [sum, number]; of an F1, [right, predicted, gold] for one
            class after the other
    """

    counts: Mapping[str, Counts]

    def __len__(self) -> int:
        return len(next(iter(self.counts.values())))

    def scores(self) -> dict[str, float]:
        """Metric → score of the whole test set."""
        return {name: float(_score(name, rows.sum(0)[None])[0]) for name, rows in self.counts.items()}


def tag_items(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], kind: str) -> Items:
    """Sentences' tags: `ner` entity F1 as seqeval counts, and both kinds token macro-F1 and accuracy."""
    classes = sorted({tag for tags in (*gold, *predicted) for tag in tags})
    made = {
        "accuracy": np.array(
            [
                [sum(map(str.__eq__, one, other)), len(one)]
                for one, other in zip(gold, predicted, strict=True)
            ],
            dtype=np.float64,
        ),
        "macro_f1": _class_counts(gold, predicted, classes),
    }
    if kind == "ner":
        # Here, for it takes a second to import, which every command would wait for.
        from seqeval.metrics.sequence_labeling import get_entities

        rows = []
        for one, other in zip(gold, predicted, strict=True):
            right, found = set(get_entities(list(one))), set(get_entities(list(other)))
            rows.append([len(right & found), len(found), len(right)])
        made["entity_f1"] = np.array(rows, dtype=np.float64)
    return Items({metric: made[metric] for metric in METRICS[kind]})


def label_items(gold: Sequence[str], predicted: Sequence[str], kind: str) -> Items:
    """Texts' classes: accuracy and macro-F1; of choices accuracy alone."""
    pairs = list(zip(gold, predicted, strict=True))
    made = {"accuracy": np.array([[one == other, 1.0] for one, other in pairs], dtype=np.float64)}
    if "macro_f1" in METRICS[kind]:
        classes = sorted({*gold, *predicted})
        made["macro_f1"] = _class_counts([[one] for one in gold], [[one] for one in predicted], classes)
    return Items(made)


def answer_items(
    answers: Sequence[Sequence[str]], predicted: Sequence[str], language: str, *, mlqa: bool
) -> Items:
    """Questions' answers: F1 of the words and exact match."""
    scores = np.array(
        [
            answer_scores(one, right, language, mlqa=mlqa)
            for right, one in zip(answers, predicted, strict=True)
        ]
    )
    ones = np.ones(len(scores))
    return Items({"f1": np.stack([scores[:, 0], ones], 1), "exact": np.stack([scores[:, 1], ones], 1)})


def _class_counts(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], classes: Sequence[str]
) -> Counts:
    """[N, 3 C] right, predicted and gold tokens of each class."""
    places = {name: 3 * index for index, name in enumerate(classes)}
    counts = np.zeros((len(gold), 3 * len(classes)))
    for row, (one, other) in enumerate(zip(gold, predicted, strict=True)):
        for right, found in zip(one, other, strict=True):
            counts[row, places[right] + 2] += 1
            counts[row, places[found] + 1] += 1
            if right == found:
                counts[row, places[right]] += 1
    return counts


def _score(metric: str, sums: Counts) -> Counts:
    """[B] scores of [B, D] sums of counts."""
    if metric not in ("macro_f1", "entity_f1"):
        return np.asarray(sums[:, 0] / sums[:, 1])
    right, found, gold = sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]
    total = found + gold
    f1 = np.divide(2 * right, total, out=np.zeros_like(right), where=total > 0)
    # A class that a sample has neither in the texts nor in the predictions is none of its classes.
    return np.asarray(f1.sum(1) / np.maximum(1, (total > 0).sum(1)))


def resample(
    items: Sequence[Items], metric: str, *, samples: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """[B, models] a metric of bootstrap samples of a test set's items, the same items for all models.

    Raises ValueError where the models were not tested on the same number of items.
    """
    size = len(items[0])
    if any(len(one) != size for one in items):
        raise ValueError("not of the same items")
    found = []
    for start in range(0, samples, step := max(1, DRAWN_AT_ONCE // size)):
        drawn = generator.multinomial(size, np.full(size, 1 / size), size=min(step, samples - start))
        found.append(np.stack([_score(metric, drawn @ one.counts[metric]) for one in items], 1))
    return np.concatenate(found)


class SeedNoise(NamedTuple):
    """How much trainings that differ by their seed alone differ in score: standard deviation, degrees of freedom."""

    deviation: float
    freedom: int


def seed_noise(scores: Sequence[Sequence[float]], *, trainings: int) -> SeedNoise:
    """The deviation within groups of scores that differ by the seed alone, of all groups together.

    scores     each model's and language's scores, one a seed
    trainings  how many groups are of trainings of their own: one training's scores on many languages are one
    Two or three seeds of one group say next to nothing of its deviation; a table's groups together do.
    """
    groups = [np.asarray(one) for one in scores if len(one) > 1]
    if not groups:
        return SeedNoise(0.0, 0)
    each = sum(len(one) - 1 for one in groups)
    within = sum(float(((one - one.mean()) ** 2).sum()) for one in groups)
    return SeedNoise(float(np.sqrt(within / each)), max(1, round(each * trainings / len(scores))))


def chance_of_seeds(
    rows: int, seeds: int, noise: SeedNoise, generator: np.random.Generator, shared: np.random.Generator
) -> npt.NDArray[np.float64]:
    """[rows] by how much a mean over so many seeds may be off by their chance.

    Student's t with the noise's degrees of freedom. Drawing the few seeds again would not do: with n of them it gives (n - 1) / n
    of the variance, and with two its 95 % interval holds the truth two times in three.

    generator  of this model's chance
    shared     of what is not known of the deviation, the same for all that share it
    """
    if noise.freedom == 0:
        return np.zeros(rows)
    scale = np.sqrt(noise.freedom / shared.chisquare(noise.freedom, rows))
    return np.asarray(generator.standard_normal(rows) * scale * noise.deviation / np.sqrt(seeds))


class Sampled(NamedTuple):
    """Bootstrap samples of a score, mean over seeds.

    items   [B] the score of each sample of test items
    chance  [B] what the seeds' chance adds to it
    """

    items: npt.NDArray[np.float64]
    chance: npt.NDArray[np.float64]

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """[B], within what a score can be."""
        return np.clip(self.items + self.chance, 0.0, 1.0)


def sampled_deviation(
    student: Sampled, teacher: Sampled, *, mean: float, base: float
) -> npt.NDArray[np.float64]:
    """[B] samples of RDT in percent. The seeds' chance enters by the ratio's derivatives at the scores themselves: added to a small
    score it could make a teacher's negative.

    mean, base  student's and teacher's scores
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = student.items / teacher.items - 1
    return np.asarray(100 * (ratio + student.chance / base - mean * teacher.chance / base**2))


class Deviation(NamedTuple):
    """RDT in percent, positive where the student is better, its interval, and what that says.

    verdict  `within` if the whole interval is above the bound, `below` if the whole is under it, else `open`
    """

    value: float
    low: float
    high: float
    verdict: str


# A teacher below this score has learned nothing of the task: a ratio to it says nothing of the student.
LEARNED = 0.05


def relative_deviation(student: float, teacher: float) -> float:
    """Percent that a student's score is above its teacher's.

    The sign of MergeDistill's tables; its equation 3, as printed, has the other.
    """
    return 100 * (student - teacher) / teacher


def deviation(
    value: float, samples: npt.NDArray[np.float64], *, level: float, within: float
) -> Deviation | None:
    """RDT with the interval of its bootstrap samples [B]; None where a sample's teacher scored nothing."""
    if not np.isfinite(samples).all():
        return None
    low, high = interval(samples, level)
    verdict = "within" if low >= -within else "below" if high < -within else "open"
    return Deviation(value, low, high, verdict)


def interval(samples: npt.NDArray[np.float64], level: float) -> tuple[float, float]:
    """The middle share of samples."""
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
