"""Training examples from stores or text, and their batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from polydistill.config.shared import Masking
from polydistill.corpora.examples import Examples
from polydistill.masking import Masked, mask_texts
from polydistill.models.inputs import length_parts, pad_batch
from polydistill.store.reader import Store
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.training.sampler import Phase

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

    tokenizer   the student's, or with `mapping` a teacher's
    max_length  of a sequence in tokens
    seed        of the masks
    rows        [n] the texts to train on; by default all
    mapping     [tokenizer's size] the tokenizer's ids → the student's; None where they are equal
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
        mapping: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.mapping = mapping
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
                    self._mapped(masked.input_ids),
                    masked.positions,
                    self._mapped(masked.gold),
                    none.astype(np.int64),
                    none.astype(np.float32),
                    row,
                    epoch,
                )
            )
        return made

    def _mapped(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return ids if self.mapping is None else self.mapping[ids]

    def identify(self, row: int) -> dict[str, int | str]:
        """The example's id."""
        return {"example": int(self.ids[row if self.rows is None else self.rows[row]])}


class StoredThenText:
    """A language's examples from stores; from a step on, its text with gold labels.

    stored      the examples until then
    texts       for each copy of the text, its examples from then on; their rows follow those of `stored`
    first_step  of the text, at least 1
    """

    def __init__(self, stored: StoredExamples, texts: Sequence[MaskedTexts], first_step: int) -> None:
        self.parts: list[StoredExamples | MaskedTexts] = [stored, *texts]
        self.lengths = np.concatenate([part.lengths for part in self.parts])
        # [parts + 1] the first row of each part.
        self.edges = np.cumsum([0, *map(len, self.parts)])
        self.phases = [Phase(0, range(len(stored))), Phase(first_step, range(len(stored), len(self.lengths)))]

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, row: int, epoch: int, language: int) -> TrainingExample:
        """The example at a row; epochs of the text have masks of their own."""
        return self.several([row], epoch, language)[0]

    def several(self, rows: Sequence[int], epoch: int, language: int) -> list[TrainingExample]:
        """The examples at rows."""
        made: dict[int, TrainingExample] = {}
        for part, first, end in zip(
            self.parts, self.edges[:-1].tolist(), self.edges[1:].tolist(), strict=True
        ):
            within = [row for row in rows if first <= row < end]
            if not within:
                continue
            if isinstance(part, StoredExamples):
                examples = [part.example(row - first, epoch, language) for row in within]
            else:
                examples = part.several([row - first for row in within], epoch, language)
            made |= {row: replace(e, row=row) for row, e in zip(within, examples, strict=True)}
        return [made[row] for row in rows]

    def identify(self, row: int) -> dict[str, int | str]:
        """The example's id, and its store if it has one."""
        part = int(np.searchsorted(self.edges, row, side="right")) - 1
        return self.parts[part].identify(row - int(self.edges[part]))


def phases_of(data: LanguageData) -> Sequence[Phase]:
    """The phases of a training; without a change, one of all rows."""
    return data.phases if isinstance(data, StoredThenText) else [Phase(0, range(len(data)))]


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
            if isinstance(self.languages[language], MaskedTexts | StoredThenText):
                together.setdefault((language, epoch), []).append(row)
        for (language, epoch), rows in together.items():
            data = self.languages[language]
            assert isinstance(data, MaskedTexts | StoredThenText)
            for row, example in zip(rows, data.several(rows, epoch, language), strict=True):
                made[language, row, epoch] = example
        return [made[key] if key in made else self[key] for key in keys]


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
