"""Probes: a linear classifier of words on a frozen encoder (Belinkov 2022), and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

# Of Adam, for features of mean 0 and variance 1; it decays linearly to zero.
LEARNING_RATE = 1e-2


@dataclass(frozen=True)
class Probe:
    """A linear classifier: a word's scores are weight @ features + bias.

    weight  [C, H]; bias [C]
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def predict(self, features: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """[N] classes of words with features [N, H]."""
        scores = np.asarray(features, dtype=np.float32) @ self.weight.T + self.bias
        return np.asarray(scores.argmax(-1), dtype=np.int64)


def fit_probe(
    features: npt.NDArray[np.floating],
    classes: npt.NDArray[np.int64],
    num_classes: int,
    *,
    seed: int,
    epochs: int = 10,
    batch_size: int = 256,
) -> Probe:
    """Multinomial logistic regression by Adam; `seed` sets initial weights and order.

    features  [N, H] of any floating type; standardised, which does not change what a linear probe can express
    classes   [N] 0 … num_classes - 1
    Raises ValueError if there is no word.
    """
    if not len(features):
        raise ValueError("no word to train on")
    mean, deviation = _moments(features)
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(features.shape[1], num_classes)
    with torch.no_grad():
        layer.weight.normal_(0, 0.01, generator=generator)
        layer.bias.zero_()
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
    steps = epochs * -(-len(features) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(features), generator=generator).split(batch_size):
            batch = (np.asarray(features[rows.numpy()], dtype=np.float32) - mean) / deviation
            loss = nn.functional.cross_entropy(
                layer(torch.from_numpy(batch)), torch.from_numpy(classes[rows.numpy()])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    # The weights include the standardisation, so that the probe reads raw features.
    weight = np.asarray(_numpy(layer.weight) / deviation, dtype=np.float32)
    return Probe(weight, np.asarray(_numpy(layer.bias) - weight @ mean, dtype=np.float32))


def _moments(features: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """([H] mean, [H] standard deviation) of rows, in parts: features may be on disk in float16."""
    total = np.zeros(features.shape[1])
    squares = np.zeros(features.shape[1])
    for start in range(0, len(features), 65536):
        part = np.asarray(features[start : start + 65536], dtype=np.float64)
        total += part.sum(0)
        squares += (part**2).sum(0)
    mean = total / len(features)
    deviation = np.sqrt(np.maximum(squares / len(features) - mean**2, 0.0))
    return mean.astype(np.float32), np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)


def _numpy(tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(tensor.detach().numpy(), dtype=np.float32)


def score_tags(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], task: str
) -> dict[str, float]:
    """Scores of a task's tags: accuracy; for `ner` also token macro-F1 (the balanced paper's) and entity F1
    (seqeval).

    gold, predicted  a sequence of tags per sentence
    Macro-F1 is over the tags that occur in either, `O` among them.
    """
    flat_gold = [tag for tags in gold for tag in tags]
    flat = [tag for tags in predicted for tag in tags]
    scores = {
        "accuracy": float(np.mean([right == guess for right, guess in zip(flat_gold, flat, strict=True)]))
    }
    if task == "ner":
        # Imported here, for they take a second, which every command would wait for.
        from seqeval.metrics import f1_score as entity_f1
        from sklearn.metrics import f1_score as macro_f1

        scores["macro_f1"] = float(macro_f1(flat_gold, flat, average="macro", zero_division=0.0))
        scores["entity_f1"] = float(
            entity_f1([list(tags) for tags in gold], [list(tags) for tags in predicted], zero_division=0.0)
        )
    return scores


# Metrics of a task; the first is the paper's.
METRICS = {"pos": ("accuracy",), "ner": ("macro_f1", "entity_f1")}


def summarise(
    scores: dict[str, dict[str, dict[str, list[float]]]], metric: str, groups: dict[str, list[str]]
) -> dict[str, dict[str, dict[str, float]]]:
    """group → `in_language`, `zero_shot` → mean, deviation over seeds of the mean over languages or pairs.

    scores  source → target → metric → one score per seed
    A group's values are those of its languages as targets; zero-shot sources are all other languages.
    """
    summary = {}
    for group, members in {"all": list(scores), **groups}.items():
        pairs = {
            "in_language": [(target, target) for target in members if target in scores],
            "zero_shot": [(source, target) for target in members for source in scores if source != target],
        }
        summary[group] = {
            kind: _mean_and_deviation(
                [scores[source][target][metric] for source, target in chosen if target in scores[source]]
            )
            for kind, chosen in pairs.items()
        }
    return summary


def _mean_and_deviation(rows: list[list[float]]) -> dict[str, float]:
    if not rows:
        return {}
    means = np.mean(rows, axis=0)
    return {"mean": float(means.mean()), "deviation": float(means.std(ddof=1)) if len(means) > 1 else 0.0}
