"""A frozen encoder's word features: the last hidden state at each word's first token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Encoding
from torch import nn

from polydistill.models.inputs import length_batches, pad_batch
from polydistill.tokenization.encode import as_text
from polydistill.tokenization.load import LoadedTokenizer

# A word with an unknown first token has uninformative features; a larger share of such words is reported.
LARGE_UNKNOWN = 0.05


@dataclass(frozen=True)
class Window:
    """Consecutive words of a sentence that fit into the model together.

    sentence  index of the sentence
    words     range of its words
    ids       [L] token ids, special tokens included
    firsts    [words] index of each word's first token
    """

    sentence: int
    words: range
    ids: list[int]
    firsts: list[int]


def split_into_windows(
    sentences: Sequence[Sequence[str]], tokenizer: LoadedTokenizer, max_length: int
) -> list[Window]:
    """Every word of every sentence once: a sentence too long for the model is halved until its parts fit.

    A single word that is too long is cut. A word without any token (such as a control character) becomes the
    unknown token.
    """
    windows: list[Window] = []
    pending = [(index, range(len(words))) for index, words in enumerate(sentences) if len(words)]
    while pending:
        encoded = _encode([sentences[index][words.start : words.stop] for index, words in pending], tokenizer)
        halves = []
        for (index, words), (ids, firsts) in zip(pending, encoded, strict=True):
            if len(ids) <= max_length:
                windows.append(Window(index, words, ids, firsts))
            elif len(words) == 1:
                windows.append(Window(index, words, [*ids[: max_length - 1], ids[-1]], firsts))
            else:
                middle = words.start + len(words) // 2
                halves += [(index, range(words.start, middle)), (index, range(middle, words.stop))]
        pending = halves
    return sorted(windows, key=lambda window: (window.sentence, window.words.start))


def word_features(
    model: nn.Module, windows: Sequence[Window], pad_id: int, *, batch_tokens: int, dtype: torch.dtype
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(index, [words, H] last hidden states) of each window, in order of computation."""
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
    """(ids, index of each word's first token) of sentences that are split into words."""
    backend = as_text(tokenizer.backend)
    backend.no_padding()
    texts = [_with_blanks(words, tokenizer) for words in sentences]
    encodings = backend.encode_batch(texts, is_pretokenized=True)
    return [
        _with_unknown(encoding, len(words), tokenizer.special_ids)
        for words, encoding in zip(texts, encodings, strict=True)
    ]


def _with_unknown(
    encoding: Encoding, num_words: int, special_ids: Mapping[str, int]
) -> tuple[list[int], list[int]]:
    """(ids, index of each word's first token), with the unknown token for each word without tokens."""
    ids: list[int] = []
    firsts: list[int] = []
    words = encoding.word_ids
    last = max((place for place, word in enumerate(words) if word is not None), default=None)
    for place, (token, word) in enumerate(zip(encoding.ids, words, strict=True)):
        after_words = token != special_ids["cls"] if last is None else place > last
        # Number of words before this token.
        before = word if word is not None else num_words if after_words else 0
        while len(firsts) < before:
            firsts.append(len(ids))
            ids.append(special_ids["unk"])
        if word == len(firsts):
            firsts.append(len(ids))
        ids.append(token)
    return ids, firsts


def _with_blanks(words: Sequence[str], tokenizer: LoadedTokenizer) -> list[str]:
    """The tokenizer's input words: a byte-level model recognises a word's start by the space before it."""
    if tokenizer.kind != "byte_level" or len(words) < 2:
        return list(words)
    return [words[0], *(f" {word}" for word in words[1:])]
