"""Training on sentences with a teacher's stored vectors: the examples of a language, and the objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from polydistill.losses.vectors import vector_loss
from polydistill.training.data import TrainingExample
from polydistill.training.objectives import Counts, Head, Progress
from polydistill.training.profile import FORWARD, LOSS

_FIRST = np.zeros(1, dtype=np.int64)
_NONE = np.zeros((1, 0))


class SentenceTexts:
    """A language's sentences in the student's ids, with the row of each one's vector.

    ids   [L] of each text
    rows  [N] the row of each text's vector in the store
    An example has one position, its first token: a step counts sentences, whatever their length.
    """

    def __init__(self, ids: Sequence[npt.NDArray[np.int32]], rows: npt.NDArray[np.int64]) -> None:
        self.ids, self.rows = ids, rows
        self.lengths = np.array([len(row) for row in ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def example(self, row: int, epoch: int, language: int) -> TrainingExample:
        """The sentence at a row, the same in every epoch."""
        return TrainingExample(
            language,
            self.ids[row].astype(np.int64),
            _FIRST,
            _FIRST,
            _NONE.astype(np.int64),
            _NONE.astype(np.float32),
            row,
            epoch,
        )

    def identify(self, row: int) -> dict[str, int | str]:
        """The sentence's line in `sentences/<language>/train.texts.txt`, from 1."""
        return {"line": row + 1}


class VectorObjective:
    """The student's vector of a sentence is to be the teacher's, see `losses.vectors.vector_loss`.

    languages  in the order of their indices in batches
    vectors    of each language, [V, D] the teacher's, perhaps on disk
    rows       of each language, [N] each text's row in them
    loss       `cosine` or `mse`
    """

    def __init__(
        self,
        languages: Sequence[str],
        vectors: Sequence[npt.NDArray[np.floating]],
        rows: Sequence[npt.NDArray[np.int64]],
        loss: str,
    ) -> None:
        self.languages, self.vectors, self.rows, self.loss = list(languages), vectors, rows, loss

    def to(self, device: torch.device) -> None:
        """Nothing to move: vectors are read from the disk."""

    def __call__(
        self, model: nn.Module, head: Head, batch: Mapping[str, Tensor], counts: Counts, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """See `Objective`; a position is a sentence."""
        with record_function(FORWARD):
            vectors = model(batch["input_ids"], batch["attention_mask"])
        keys = batch["keys"].tolist()
        target = np.stack(
            [self.vectors[language][self.rows[language][row]] for language, row, _ in keys]
        ).astype(np.float32)
        with torch.autocast(vectors.device.type, enabled=False), record_function(LOSS):
            each = vector_loss(vectors.float(), torch.from_numpy(target).to(vectors.device), self.loss)
            loss = each.sum() * counts.processes / counts.masked
        size = len(self.languages)
        language = batch["language"]
        sums = torch.zeros(2 * size, dtype=torch.float64, device=each.device)
        sums[:size].index_add_(0, language, each.detach().double())
        sums[size:] = torch.bincount(language, minlength=size)
        return loss, sums

    def means(self, sums: Sequence[float], progress: Progress) -> dict[str, float]:
        """The mean loss of a sentence, over all and by language."""
        size = len(self.languages)
        means = {"vector_loss": sum(sums[:size]) / max(1.0, sum(sums[size:]))}
        for name, loss, count in zip(self.languages, sums[:size], sums[size:], strict=True):
            if count:
                means[f"loss_{name}"] = loss / count
        return {name: round(value, 5) for name, value in means.items()}
