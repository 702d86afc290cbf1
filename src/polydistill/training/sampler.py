"""Which examples of which languages a step draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler


class Phase(NamedTuple):
    """The rows that a language's examples are drawn from, from a step on."""

    first_step: int
    rows: range


class LanguageSampler(Sampler[tuple[int, int, int]]):
    """Draws languages by probability, mixed within every batch, and each language's rows without repetition.

    A batch has batch_size * probability examples of each language, rounded up or down (systematic sampling),
    so that the mean is exact. Each epoch of a language has a new random order, so a batch has texts of all
    lengths. Within a batch the longest come first: micro-batches have sequences of similar length and little
    padding.

    lengths        of each language, [N] tokens of its examples
    probabilities  of each language, summing to 1
    phases         for each language, the rows to draw from; by default all
    """

    def __init__(
        self,
        lengths: Sequence[npt.NDArray[np.int64]],
        probabilities: Sequence[float],
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        phases: Sequence[Sequence[Phase]] | None = None,
    ) -> None:
        self.lengths, self.batch_size, self.num_batches, self.seed = (
            list(lengths),
            batch_size,
            num_batches,
            seed,
        )
        self.phases = phases or [[Phase(0, range(len(each)))] for each in lengths]
        self.edges = np.cumsum(probabilities)
        self.edges[-1] = 1.0

    def __len__(self) -> int:
        return self.batch_size * self.num_batches

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        rows: dict[int, _Rows] = {}
        for batch in range(self.num_batches):
            for language, phases in enumerate(self.phases):
                for number, phase in enumerate(phases):
                    if phase.first_step == batch:
                        # The first phase's seed is that of a training with one.
                        seed = [self.seed, 2, language, *([number] if number else [])]
                        rows[language] = _Rows(phase.rows, seed)
            keys = [(language, *next(rows[language])) for language in self._languages(batch).tolist()]
            yield from sorted(keys, key=lambda key: -int(self.lengths[key[0]][key[1]]))

    def _languages(self, batch: int) -> npt.NDArray[np.int64]:
        """[batch_size] the language of each example of a batch."""
        draw = np.random.default_rng([self.seed, 1, batch])
        points = (np.arange(self.batch_size) + draw.random()) / self.batch_size
        return draw.permutation(np.searchsorted(self.edges, points, side="right"))


class _Rows(Iterator[tuple[int, int]]):
    """(row, epoch) of one language without end: every row once per epoch, each epoch in a new order."""

    def __init__(self, rows: range, seed: list[int]) -> None:
        self.rows, self.seed, self.epoch = rows, seed, -1
        self.order: Iterator[int] = iter(())

    def __next__(self) -> tuple[int, int]:
        row = next(self.order, None)
        if row is None:
            self.epoch += 1
            order = np.random.default_rng([*self.seed, self.epoch]).permutation(len(self.rows))
            self.order = iter(order.tolist())
            row = next(self.order)
        return self.rows[row], self.epoch
