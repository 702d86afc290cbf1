"""A frozen encoder's features of words: the last hidden state at each word's first token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from polydistill.models import length_batches, pad_batch
from polydistill.tokenization import LoadedTokenizer


@dataclass(frozen=True)
class Window:
    """Consecutive words of a sentence that fit into the model together.

    sentence  its index
    words     which of its words
    ids       [L] token ids, special tokens included
    firsts    [words] place of each word's first token
    """

    sentence: int
    words: range
    ids: list[int]
    firsts: list[int]


def split_into_windows(
    sentences: Sequence[Sequence[str]], tokenizer: LoadedTokenizer, max_length: int
) -> list[Window]:
    """Every word of every sentence once: a sentence too long for the model is halved until its parts fit.

    A word that alone is too long is cut. A word of which the tokenizer makes nothing (a control character, say) is
    read as its unknown token.
    """
    made: list[Window] = []
    pending = [(index, range(len(words))) for index, words in enumerate(sentences) if len(words)]
    while pending:
        encoded = _encode([sentences[index][words.start : words.stop] for index, words in pending], tokenizer)
        halves = []
        for (index, words), (ids, firsts) in zip(pending, encoded, strict=True):
            if len(ids) <= max_length:
                made.append(Window(index, words, ids, firsts))
            elif len(words) == 1:
                made.append(Window(index, words, [*ids[: max_length - 1], ids[-1]], firsts))
            else:
                middle = words.start + len(words) // 2
                halves += [(index, range(words.start, middle)), (index, range(middle, words.stop))]
        pending = halves
    return sorted(made, key=lambda window: (window.sentence, window.words.start))


def word_features(
    model: Any,
    windows: Sequence[Window],
    pad_id: int,
    *,
    batch_tokens: int,
    dtype: torch.dtype,
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(index of the window, [words, H] last hidden states) of each window, in the order in which they are computed."""
    device = next(model.parameters()).device
    for batch in length_batches([len(window.ids) for window in windows], batch_tokens):
        input_ids, attention = pad_batch([windows[index].ids for index in batch], pad_id)
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden = model(input_ids=input_ids.to(device), attention_mask=attention.to(device))[0]
        rows = hidden.float().cpu().numpy()
        for row, index in enumerate(batch):
            yield index, rows[row, windows[index].firsts]


def _encode(
    sentences: Sequence[Sequence[str]], tokenizer: LoadedTokenizer
) -> list[tuple[list[int], list[int]]]:
    """(ids, place of each word's first token) of sentences that are split into words."""
    backend = tokenizer.backend
    backend.no_truncation()
    backend.no_padding()
    unknown = str(backend.id_to_token(tokenizer.special_ids["unk"]))
    texts = [_with_blanks(words, tokenizer) for words in sentences]
    found = []
    for words, encoding in zip(texts, backend.encode_batch(texts, is_pretokenized=True), strict=True):
        firsts = _first_tokens(encoding, len(words))
        if None in firsts:
            words = [unknown if first is None else word for word, first in zip(words, firsts, strict=True)]
            encoding = backend.encode(words, is_pretokenized=True)
            firsts = _first_tokens(encoding, len(words))
        found.append((list(encoding.ids), [0 if first is None else first for first in firsts]))
    return found


def _first_tokens(encoding: Any, num_words: int) -> list[int | None]:
    firsts: list[int | None] = [None] * num_words
    for place, word in enumerate(encoding.word_ids):
        if word is not None and firsts[word] is None:
            firsts[word] = place
    return firsts


def _with_blanks(words: Sequence[str], tokenizer: LoadedTokenizer) -> list[str]:
    """Words as the tokenizer is to see them: a byte-level model knows a word's start by the blank before it."""
    if tokenizer.kind != "byte_level" or len(words) < 2:
        return list(words)
    return [words[0], *(f" {word}" for word in words[1:])]
