"""Tokenizers and vocabularies: load, unite, renumber, train, compare."""

from polydistill.tokenization.build import (
    language_tokenizer,
    save_tokenizer,
    special_strings,
    train_wordpiece,
    union_tokenizer,
)
from polydistill.tokenization.drift import segmentation
from polydistill.tokenization.encode import Encoded, as_text, count_tokens, encode, masking_units, word_starts
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer
from polydistill.tokenization.selection import document_frequency, select
from polydistill.tokenization.trim import compare_trimmed, trim_tokenizer
from polydistill.tokenization.union import Union, overlap, unite

__all__ = [
    "Encoded",
    "LoadedTokenizer",
    "Union",
    "as_text",
    "compare_trimmed",
    "count_tokens",
    "document_frequency",
    "encode",
    "language_tokenizer",
    "load_tokenizer",
    "masking_units",
    "overlap",
    "save_tokenizer",
    "segmentation",
    "select",
    "special_strings",
    "train_wordpiece",
    "trim_tokenizer",
    "union_tokenizer",
    "unite",
    "word_starts",
]
