"""One shard of a store: the same work and the same bytes on every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from polydistill.config.scoring import Scoring
from polydistill.config.shared import Masking
from polydistill.masking import Masked, mask_texts
from polydistill.models.inputs import length_batches
from polydistill.scoring.predict import predict
from polydistill.store.writer import ScoredExample
from polydistill.tokenization.load import LoadedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HasTexts(Protocol):
    """Examples for scoring: ids and texts by row."""

    def __len__(self) -> int: ...
    @property
    def ids(self) -> npt.NDArray[np.uint64]: ...
    def texts(self, rows: slice) -> list[str]: ...


@dataclass(frozen=True)
class Job:
    """What a shard depends on, besides its examples and the teacher's weights.

    identity  of the store, see `store.StoreWriter`
    dtype     of matrix products
    beside    tokenizers of the language's other teachers, whose copies mask the same words
    """

    identity: dict[str, Any]
    tokenizer: LoadedTokenizer
    scoring: Scoring
    masking: Masking
    max_length: int
    dtype: torch.dtype
    seed: int
    beside: tuple[LoadedTokenizer, ...] = ()

    def num_shards(self, num_examples: int) -> int:
        """Shards that `num_examples` examples take."""
        return -(-num_examples // self.scoring.shard_examples)

    def rows(self, index: int, num_examples: int) -> range:
        """The rows of a shard's examples."""
        size = self.scoring.shard_examples
        return range(index * size, min((index + 1) * size, num_examples))

    def read(self, index: int, examples: HasTexts) -> tuple[list[int], list[str]]:
        """(ids, texts) of a shard's examples."""
        rows = self.rows(index, len(examples))
        ids = [int(example) for example in examples.ids[rows.start : rows.stop]]
        return ids, examples.texts(slice(rows.start, rows.stop))

    def mask(self, ids: Sequence[int], texts: Sequence[str]) -> list[Masked]:
        """Tokenise and mask a shard's examples."""
        return mask_texts(
            texts,
            ids,
            self.tokenizer,
            max_length=self.max_length,
            masking=self.masking,
            seed=self.seed,
            beside=self.beside,
        )

    def score(
        self,
        model: PreTrainedModel,
        ids: Sequence[int],
        masked: Sequence[Masked],
        progress: Callable[[int, int], None] = lambda examples, tokens: None,
    ) -> list[ScoredExample]:
        """A shard's examples with the teacher's predictions, without examples that have no masked token.

        progress  called after each batch with its examples and tokens
        """
        scored: list[ScoredExample | None] = [None] * len(ids)
        for batch in length_batches(
            [len(example.input_ids) for example in masked], self.scoring.batch_tokens
        ):
            chosen = [row for row in batch if len(masked[row].positions)]
            if chosen:
                predictions = predict(
                    model,
                    [masked[row] for row in chosen],
                    ids=[ids[row] for row in chosen],
                    pad_id=self.tokenizer.special_ids["pad"],
                    vocabulary_size=self.tokenizer.size,
                    top_k=self.scoring.top_k,
                    sampling=self.scoring.sampling,
                    dtype=self.dtype,
                    seed=self.seed,
                )
                for row, prediction in zip(chosen, predictions, strict=True):
                    example = masked[row]
                    scored[row] = ScoredExample(
                        ids[row],
                        example.input_ids,
                        example.positions,
                        example.gold,
                        prediction.gold_logprobs,
                        prediction.top_ids,
                        prediction.top_logprobs,
                    )
            progress(len(batch), sum(len(masked[row].input_ids) for row in batch))
        return [example for example in scored if example is not None]
