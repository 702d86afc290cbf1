"""Training examples from stores or text, and their batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from polydistill.config.shared import Masking
from polydistill.corpora.examples import Examples
from polydistill.masking import Masked, mask_texts
from polydistill.models.inputs import length_parts, pad_batch
from polydistill.store.reader import Store
from polydistill.tokenization.load import LoadedTokenizer

# Part of the identity of trained models. 2: steps mix texts of all lengths and share one divisor. 3: the last
# layer's feed-forward part draws its dropout at masked positions only.
STEPS_VERSION = 3
# Examples of a language whose mean estimates that of all.
SAMPLED_EXAMPLES = 512


@dataclass(frozen=True)
class TrainingExample:
    """One masked example in the student's ids.

    input_ids [L], positions [M], gold [M]; top_ids [M, K] and top_logprobs [M, K], K = 0 without a teacher;
    row and epoch identify it among its language's examples
    """

    language: int
    input_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    gold: npt.NDArray[np.int64]
    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float32]
    row: int = -1
    epoch: int = 0


class LanguageData(Protocol):
    """One language's training examples, by row; a source with new masks in every epoch uses `epoch`.

    lengths  [N] tokens of each example, by which batches are grouped; estimates, where examples are made
             later
    """

    @property
    def lengths(self) -> npt.NDArray[np.int64]: ...
    def __len__(self) -> int: ...
    def example(self, row: int, epoch: int, language: int) -> TrainingExample: ...
    def identify(self, row: int) -> dict[str, int | str]:
        """Where to find the example: its id in `corpora/<language>`, and its store."""
        ...


class StoredExamples:
    """A language's examples from one or several teachers' stores.

    maps     for each store, [teacher's size] teacher id → student id
    choice   [N, 2] (store, row) of the copies to train on
    """

    def __init__(
        self, stores: Sequence[Store], maps: Sequence[npt.NDArray[np.int64]], choice: npt.NDArray[np.int64]
    ):
        self.stores, self.maps, self.choice = list(stores), list(maps), choice
        self.lengths = np.zeros(len(choice), dtype=np.int64)
        for index, store in enumerate(stores):
            of_store = choice[:, 0] == index
            self.lengths[of_store] = store.lengths[choice[of_store, 1]]

    def __len__(self) -> int:
        return len(self.choice)

    def example(self, row: int, epoch: int, language: int) -> TrainingExample:
        """The example at a row, with the store's masks in every epoch."""
        store, place = self.choice[row]
        stored, mapping = self.stores[store].row(int(place)), self.maps[store]
        return TrainingExample(
            language,
            mapping[stored.input_ids],
            stored.positions.astype(np.int64),
            mapping[stored.gold],
            mapping[stored.top_ids],
            stored.top_logprobs.astype(np.float32),
            row,
            epoch,
        )

    def identify(self, row: int) -> dict[str, int | str]:
        """The example's id and its store."""
        store, place = self.choice[row]
        return {
            "example": int(self.stores[store].row(int(place)).example),
            "store": str(self.stores[store].folder),
        }


class MaskedTexts:
    """A language's examples with gold labels only, tokenised on access, with new masks in every epoch.

    tokenizer   the student's
    max_length  of a sequence in tokens
    seed        of the masks
    rows        [n] the texts to train on; by default all
    """

    def __init__(
        self,
        examples: Examples,
        tokenizer: LoadedTokenizer,
        masking: Masking,
        *,
        max_length: int,
        seed: int,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> None:
        lengths = examples.num_tokens.astype(np.int64)
        self.lengths = lengths if rows is None else lengths[rows]
        self.examples, self.tokenizer, self.masking = examples, tokenizer, masking
        self.max_length, self.seed, self.rows, self.ids = max_length, seed, rows, examples.ids

    def masked(self, rows: Sequence[int], epoch: int) -> list[Masked]:
        """The texts at rows of the examples, masked for an epoch."""
        chosen = np.array(rows, dtype=np.int64)
        # Every epoch has its own seed, far from those of other seeds.
        return mask_texts(
            self.examples.texts(chosen),
            [int(example) for example in self.ids[chosen]],
            self.tokenizer,
            max_length=self.max_length,
            masking=self.masking,
            seed=self.seed + (epoch << 32),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, row: int, epoch: int, language: int) -> TrainingExample:
        """The example at a row, masked for an epoch."""
        return self.several([row], epoch, language)[0]

    def several(self, rows: Sequence[int], epoch: int, language: int) -> list[TrainingExample]:
        """The examples at rows, masked for an epoch; faster than one at a time."""
        texts = rows if self.rows is None else [int(self.rows[row]) for row in rows]
        made = []
        for row, masked in zip(rows, self.masked(texts, epoch), strict=True):
            none = np.zeros((len(masked.positions), 0))
            made.append(
                TrainingExample(
                    language,
                    masked.input_ids,
                    masked.positions,
                    masked.gold,
                    none.astype(np.int64),
                    none.astype(np.float32),
                    row,
                    epoch,
                )
            )
        return made

    def identify(self, row: int) -> dict[str, int | str]:
        """The example's id."""
        return {"example": int(self.ids[row if self.rows is None else self.rows[row]])}


def choose_copies(
    stores: Sequence[Store],
    use: str,
    names: Sequence[str],
    *,
    weights: Sequence[npt.NDArray[np.float64]] | None = None,
) -> npt.NDArray[np.int64]:
    """[N, 2] (store, row) of the copies to train on.

    use      `all`, `best` (for each example the copy with the lowest teacher loss) or a name of `names`
    weights  for each store, [rows] factors of the losses before comparison
    """
    copies = [np.stack([np.full(len(s), i), np.arange(len(s))], axis=1) for i, s in enumerate(stores)]
    if use == "all":
        return np.concatenate(copies)
    if use != "best":
        return copies[list(names).index(use)]
    losses = [s.losses * (weights[i] if weights else 1.0) for i, s in enumerate(stores)]
    everything = np.concatenate(copies)
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

    def __getitems__(self, keys: Sequence[tuple[int, int, int]]) -> list[TrainingExample]:
        """Several examples, in the order of their keys; a data loader asks for a micro-batch at once."""
        made: dict[tuple[int, int, int], TrainingExample] = {}
        together: dict[tuple[int, int], list[int]] = {}
        for language, row, epoch in keys:
            if isinstance(self.languages[language], MaskedTexts):
                together.setdefault((language, epoch), []).append(row)
        for (language, epoch), rows in together.items():
            data = self.languages[language]
            assert isinstance(data, MaskedTexts)
            for row, example in zip(rows, data.several(rows, epoch, language), strict=True):
                made[language, row, epoch] = example
        return [made[key] if key in made else self[key] for key in keys]


class LanguageSampler(Sampler[tuple[int, int, int]]):
    """Draws languages by probability, mixed within every batch, and each language's rows without repetition.

    A batch has batch_size * probability examples of each language, rounded up or down (systematic sampling),
    so that the mean is exact. Each epoch of a language has a new random order, so a batch has texts of all
    lengths. Within a batch the longest come first: micro-batches have sequences of similar length and little
    padding.

    lengths        of each language, [N] tokens of its examples
    probabilities  of each language, summing to 1
    """

    def __init__(
        self,
        lengths: Sequence[npt.NDArray[np.int64]],
        probabilities: Sequence[float],
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
    ) -> None:
        self.lengths, self.batch_size, self.num_batches, self.seed = (
            list(lengths),
            batch_size,
            num_batches,
            seed,
        )
        self.edges = np.cumsum(probabilities)
        self.edges[-1] = 1.0

    def __len__(self) -> int:
        return self.batch_size * self.num_batches

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        rows = [_Rows(len(lengths), [self.seed, 2, i]) for i, lengths in enumerate(self.lengths)]
        for batch in range(self.num_batches):
            keys = [(language, *next(rows[language])) for language in self._languages(batch).tolist()]
            yield from sorted(keys, key=lambda key: -int(self.lengths[key[0]][key[1]]))

    def _languages(self, batch: int) -> npt.NDArray[np.int64]:
        """[batch_size] the language of each example of a batch."""
        draw = np.random.default_rng([self.seed, 1, batch])
        points = (np.arange(self.batch_size) + draw.random()) / self.batch_size
        return draw.permutation(np.searchsorted(self.edges, points, side="right"))


class _Rows(Iterator[tuple[int, int]]):
    """(row, epoch) of one language without end: every row once per epoch, each epoch in a new order."""

    def __init__(self, size: int, seed: list[int]) -> None:
        self.size, self.seed, self.epoch = size, seed, -1
        self.order: Iterator[int] = iter(())

    def __next__(self) -> tuple[int, int]:
        row = next(self.order, None)
        if row is None:
            self.epoch += 1
            order = np.random.default_rng([*self.seed, self.epoch]).permutation(self.size)
            self.order = iter(order.tolist())
            row = next(self.order)
        return row, self.epoch


class StepSize(NamedTuple):
    """Mean masked positions and tokens of a step, over all micro-batches and processes.

    Every step's loss is divided by these. Dividing by the step's own counts would give a token less weight in
    a step with many tokens, and so penalise long texts.
    """

    masked: float
    tokens: float


def expected_size(
    languages: Sequence[LanguageData], probabilities: Sequence[float], batch_size: int
) -> StepSize:
    """The mean size of a step of batch_size examples, from a sample of each language."""
    masked = tokens = 0.0
    for language, (data, probability) in enumerate(zip(languages, probabilities, strict=True)):
        rows = np.unique(np.linspace(0, len(data) - 1, min(len(data), SAMPLED_EXAMPLES)).astype(np.int64))
        examples = [data.example(int(row), 0, language) for row in rows]
        masked += probability * float(np.mean([len(example.positions) for example in examples]))
        tokens += probability * float(np.mean([len(example.input_ids) for example in examples]))
    return StepSize(max(1.0, batch_size * masked), max(1.0, batch_size * tokens))


def collate_parts(
    examples: Sequence[TrainingExample], pad_id: int, overhead_tokens: int
) -> dict[str, list[dict[str, Tensor]]]:
    """A micro-batch as `parts` of similar lengths (`models.length_parts`), each a batch (`collate`)."""
    parts = length_parts([len(example.input_ids) for example in examples], overhead_tokens)
    return {"parts": [collate([examples[index] for index in part], pad_id) for part in parts]}


def collate(examples: Sequence[TrainingExample], pad_id: int) -> dict[str, Tensor]:
    """A batch.

    input_ids, attention_mask  [B, L]
    positions  [N] indices of masked tokens in the flattened batch; language [N]
    ids        [N, 1 + K] gold first, then the teacher's; logprobs [N, K]
    keys       [B, 3] language, row and epoch of each example
    """
    input_ids, attention = pad_batch([example.input_ids for example in examples], pad_id)
    width = input_ids.shape[1]

    def joined(parts: list[npt.NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts))

    return {
        "input_ids": input_ids,
        "attention_mask": attention,
        "positions": joined([row * width + example.positions for row, example in enumerate(examples)]),
        "language": joined([np.full(len(example.positions), example.language) for example in examples]),
        "ids": joined(
            [np.concatenate([example.gold[:, None], example.top_ids], axis=1) for example in examples]
        ),
        "logprobs": joined([example.top_logprobs for example in examples]),
        "keys": torch.tensor([[example.language, example.row, example.epoch] for example in examples]),
    }
