"""Tokenizers and vocabularies: load, unite, renumber, train, compare."""

from polydistill.tokenization.build import (
    language_tokenizer,
    save_tokenizer,
    special_strings,
    train_wordpiece,
    union_tokenizer,
)
from polydistill.tokenization.drift import segmentation
from polydistill.tokenization.encode import Encoded, count_tokens, encode, word_starts
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer
from polydistill.tokenization.union import Union, overlap, unite

__all__ = [
    "Encoded",
    "LoadedTokenizer",
    "Union",
    "count_tokens",
    "encode",
    "language_tokenizer",
    "load_tokenizer",
    "overlap",
    "save_tokenizer",
    "segmentation",
    "special_strings",
    "train_wordpiece",
    "union_tokenizer",
    "unite",
    "word_starts",
]  # fmt: skip
