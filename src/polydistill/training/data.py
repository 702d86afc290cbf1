"""Training examples from stores or from text, and the batches made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from polydistill.masking import Masked
from polydistill.models import pad_batch
from polydistill.store import Store


@dataclass(frozen=True)
class TrainingExample:
    """One masked example in the student's ids.

    input_ids [L], positions [M], gold [M]; top_ids [M, K] and top_logprobs [M, K], K = 0 without a teacher
    """

    language: int
    input_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    gold: npt.NDArray[np.int64]
    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float32]


class LanguageData(Protocol):
    """One language's training examples, by row; a source that masks anew each epoch looks at `epoch`."""

    def __len__(self) -> int: ...
    def example(self, row: int, epoch: int, language: int) -> TrainingExample: ...


class StoredExamples:
    """A language's examples from one or several teachers' stores.

    maps     for each store, [teacher's size] teacher id → student id
    choice   [N, 2] (store, row): which copies to train on
    """

    def __init__(
        self, stores: Sequence[Store], maps: Sequence[npt.NDArray[np.int64]], choice: npt.NDArray[np.int64]
    ):
        self.stores, self.maps, self.choice = list(stores), list(maps), choice

    def __len__(self) -> int:
        return len(self.choice)

    def example(self, row: int, epoch: int, language: int) -> TrainingExample:
        """The example at a row; its masks are the store's, in every epoch."""
        store, place = self.choice[row]
        stored, mapping = self.stores[store].row(int(place)), self.maps[store]
        return TrainingExample(
            language,
            mapping[stored.input_ids],
            stored.positions.astype(np.int64),
            mapping[stored.gold],
            mapping[stored.top_ids],
            stored.top_logprobs.astype(np.float32),
        )


class MaskedTexts:
    """A language's examples with gold labels only, masked anew in every epoch.

    make  (row, epoch) → a masked text in the student's ids
    """

    def __init__(self, length: int, make: Any) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    def example(self, row: int, epoch: int, language: int) -> TrainingExample:
        """The example at a row, masked for an epoch."""
        masked: Masked = self.make(row, epoch)
        none = np.zeros((len(masked.positions), 0))
        return TrainingExample(
            language,
            masked.input_ids,
            masked.positions,
            masked.gold,
            none.astype(np.int64),
            none.astype(np.float32),
        )


def choose_copies(
    stores: Sequence[Store],
    use: str,
    names: Sequence[str],
    *,
    weights: Sequence[npt.NDArray[np.float64]] | None = None,
) -> npt.NDArray[np.int64]:
    """[N, 2] (store, row) of the copies to train on.

    use      `all`, `best` (for each example the copy with the lowest teacher loss) or a name of `names`
    weights  for each store [rows] what to multiply losses by before they are compared
    """
    places = [np.stack([np.full(len(s), i), np.arange(len(s))], axis=1) for i, s in enumerate(stores)]
    if use == "all":
        return np.concatenate(places)
    if use != "best":
        return places[list(names).index(use)]
    losses = [s.losses * (weights[i] if weights else 1.0) for i, s in enumerate(stores)]
    everything = np.concatenate(places)
    ids = np.concatenate([s.examples for s in stores])
    order = np.lexsort((everything[:, 0], np.concatenate(losses), ids))
    first = np.ones(len(order), dtype=bool)
    first[1:] = ids[order][1:] != ids[order][:-1]
    chosen = everything[order[first]]
    return chosen[np.lexsort((chosen[:, 0], chosen[:, 1]))]


class LanguageDataset(Dataset[TrainingExample]):
    """All languages' examples, addressed by (language, row, epoch)."""

    def __init__(self, languages: Sequence[LanguageData], num_samples: int) -> None:
        self.languages, self.num_samples = list(languages), num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, key: tuple[int, int, int]) -> TrainingExample:
        language, row, epoch = key
        return self.languages[language].example(row, epoch, language)


class LanguageSampler(Sampler[tuple[int, int, int]]):
    """Draws languages by probability, mixed within every batch, and each language's rows without repetition.

    Within a batch the numbers of examples are as near to batch_size * probability as whole numbers can be
    (systematic sampling), and on average equal to it. Each language's rows come in a new random order in
    every epoch of that language.

    sizes          examples of each language
    probabilities  of each language, summing to 1
    """

    def __init__(
        self,
        sizes: Sequence[int],
        probabilities: Sequence[float],
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
    ) -> None:
        self.sizes, self.batch_size, self.num_batches, self.seed = list(sizes), batch_size, num_batches, seed
        self.edges = np.cumsum(probabilities)
        self.edges[-1] = 1.0

    def __len__(self) -> int:
        return self.batch_size * self.num_batches

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        used = [0] * len(self.sizes)
        orders: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}
        for batch in range(self.num_batches):
            draw = np.random.default_rng([self.seed, 1, batch])
            points = (np.arange(self.batch_size) + draw.random()) / self.batch_size
            languages = draw.permutation(np.searchsorted(self.edges, points, side="right"))
            for language in languages.tolist():
                epoch, place = divmod(used[language], self.sizes[language])
                used[language] += 1
                if language not in orders or orders[language][0] != epoch:
                    rows = np.random.default_rng([self.seed, 2, language, epoch]).permutation(
                        self.sizes[language]
                    )
                    orders[language] = (epoch, rows)
                yield language, int(orders[language][1][place]), epoch


def collate(examples: Sequence[TrainingExample], pad_id: int) -> dict[str, Tensor]:
    """A batch.

    input_ids, attention_mask  [B, L]
    positions  [N] places of masked tokens in the flattened batch; language [N]
    ids        [N, 1 + K] gold first, then the teacher's; logprobs [N, K]
    """
    input_ids, attention = pad_batch([example.input_ids for example in examples], pad_id)
    width = input_ids.shape[1]

    def joined(parts: list[npt.NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts))

    return {
        "input_ids": input_ids,
        "attention_mask": attention,
        "positions": joined([row * width + example.positions for row, example in enumerate(examples)]),
        "language": joined([np.full(len(example.positions), example.language) for example in examples]),
        "ids": joined([np.concatenate([e.gold[:, None], e.top_ids], axis=1) for e in examples]),
        "logprobs": joined([example.top_logprobs for example in examples]),
    }
