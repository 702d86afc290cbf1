"""Tokenizers and vocabularies: load, unite, renumber, train, compare."""

from polydistill.tokenization.drift import segmentation
from polydistill.tokenization.encode import Encoded, encode
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer
from polydistill.tokenization.selection import select
from polydistill.tokenization.student import union_tokenizer
from polydistill.tokenization.trim import trim_tokenizer
from polydistill.tokenization.union import Union, unite
from polydistill.tokenization.wordpiece import train_wordpiece

__all__ = [
    "Encoded",
    "LoadedTokenizer",
    "Union",
    "encode",
    "load_tokenizer",
    "segmentation",
    "select",
    "train_wordpiece",
    "trim_tokenizer",
    "union_tokenizer",
    "unite",
]
