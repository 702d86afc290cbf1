"""Weights before training, from the training text: see `models.text_start`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from polydistill.config.start import Start, TaughtStart
from polydistill.corpora.examples import Examples
from polydistill.disk import Json
from polydistill.models.teacher_start import PieceRows
from polydistill.models.text_start import (
    COUNTED_CHARACTERS,
    Ids,
    count_pieces,
    pass_values,
    start_from_text,
    tokenised,
)
from polydistill.pipelines.run_folder import Run
from polydistill.tokenization.load import LoadedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ReadText:
    """A language's training text, as a model reads it.

    rows     [n] the examples that it is trained on; by default all
    mapping  [tokenizer's size] the tokenizer's ids → the model's, None where they are equal
    """

    examples: Examples
    tokenizer: LoadedTokenizer
    rows: Ids | None = None
    mapping: Ids | None = None


def start_weights(
    run: Run,
    model: PreTrainedModel,
    texts: Mapping[str, Sequence[ReadText]],
    probabilities: Mapping[str, float],
    *,
    start: Start | TaughtStart,
    seed: int,
    teachers: Callable[[], Iterable[PieceRows]] = tuple,
) -> Json:
    """Set a random model's output bias, embedding rows and attentions; returns the record.

    texts          language → its text, once for each tokenizer that reads it
    probabilities  language → the share of examples that are drawn from it
    teachers       loads the rows of the teachers, where `start.rows` asks for them
    """
    record: Json = {}
    bias = start.bias == "text"
    if start.rows != "random" or bias:
        share = COUNTED_CHARACTERS // max(1, sum(map(len, texts.values())))
        ids = {
            language: (
                batch
                for text in read
                for batch in tokenised(
                    text.examples, text.tokenizer, characters=share, rows=text.rows, mapping=text.mapping
                )
            )
            for language, read in texts.items()
        }
        counts = count_pieces(ids, probabilities, model.config.vocab_size)
        loaded = teachers() if start.rows in ("teachers", "both") else ()
        record = start_from_text(model, counts, seed=seed, rows=start.rows, bias=bias, teachers=loaded)
        made = ["output bias from the text"] * record["bias"]
        made += [f"embedding rows of {record['known_pieces']:,} pieces ({start.rows})"]
        run.say(f"start: {', '.join(made)}")
    if start.attention == "mean":
        record["attentions"] = pass_values(model, seed=seed)
    return record


def piece_rows(model: PreTrainedModel, ids: Ids, mapping: Ids | None = None) -> PieceRows:
    """A teacher's embedding rows of its pieces `ids`; mapping [teacher's size] → the student's ids."""
    rows = model.get_input_embeddings().weight.detach()[torch.from_numpy(ids)]
    return PieceRows(rows.float().cpu().numpy(), ids if mapping is None else mapping[ids])
