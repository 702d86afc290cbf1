"""The trimmed tokenizer, and whether it treats text as the original does."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from polydistill.errors import TokenizerError
from polydistill.tokenization.encode import as_text, word_starts
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import CONTINUING, Spec
from polydistill.tokenization.selection import Selection, merged, model_ids
from polydistill.tokenization.student import renumber_processor


def trim_tokenizer(tokenizer: LoadedTokenizer, selection: Selection) -> LoadedTokenizer:
    """The tokenizer with only the selected pieces, under new ids; normaliser and pre-tokeniser do not change.

    The law: text whose pieces are all kept gets the same pieces. WordPiece takes the longest match and a
    Unigram the best path; neither changes when unused entries are removed. A byte-pair model keeps every
    merge whose parts and result it keeps, so the merges that the text needs stay, in their order.
    Raises TokenizerError if `tokenizers` does not accept the result.
    """
    mapping = selection.mapping(tokenizer.size)
    spec = copy.deepcopy(tokenizer.spec)
    spec["truncation"] = spec["padding"] = None
    spec["model"] = _trim_model(spec["model"], mapping)
    added = [token for token in spec["added_tokens"] if mapping[token["id"]] >= 0]
    for token in added:
        token["id"] = int(mapping[token["id"]])
    spec["added_tokens"] = sorted(added, key=lambda token: int(token["id"]))
    spec["post_processor"] = renumber_processor(spec.get("post_processor"), mapping)
    try:
        backend = Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise _refused(tokenizer, str(error)) from error
    expected = {
        string: int(mapping[index])
        for string, index in tokenizer.backend.get_vocab(with_added_tokens=True).items()
        if mapping[index] >= 0
    }
    if backend.get_vocab(with_added_tokens=True) != expected:
        raise _refused(tokenizer, "`tokenizers` numbers its pieces differently")
    specials = {role: int(mapping[index]) for role, index in tokenizer.special_ids.items()}
    return LoadedTokenizer(tokenizer.name, backend, specials, tokenizer.max_length, tokenizer.settings)


@dataclass(frozen=True)
class Agreement:
    """How a trimmed tokenizer segments texts, compared with the original.

    num_texts, num_words, num_characters   what was compared
    kept_texts        texts all of whose pieces are kept
    shortened_texts   other texts without the words that need a dropped piece, if then all pieces are kept
    identical_texts   kept and shortened texts that get the same pieces
    kept_tokens       share of the original's tokens whose piece is kept
    fertility, trimmed_fertility                    tokens per word
    unknown_share, trimmed_unknown_share            share of tokens that are unk
    unknown_characters, trimmed_unknown_characters  share of characters under unk
    """

    num_texts: int
    num_words: int
    num_characters: int
    kept_texts: int
    shortened_texts: int
    identical_texts: int
    kept_tokens: float
    fertility: float
    trimmed_fertility: float
    unknown_share: float
    trimmed_unknown_share: float
    unknown_characters: float
    trimmed_unknown_characters: float

    def as_dict(self) -> dict[str, float]:
        """The measures by name, shares rounded to six places."""
        return {
            name: value if isinstance(value, int) else round(value, 6) for name, value in asdict(self).items()
        }

    @property
    def holds(self) -> bool:
        """Whether every text whose pieces are all kept gets the same pieces, and there was one."""
        return 0 < self.identical_texts == self.kept_texts + self.shortened_texts


def compare_trimmed(
    original: LoadedTokenizer, trimmed: Tokenizer, selection: Selection, texts: Sequence[str]
) -> tuple[Agreement, list[str], list[str]]:
    """Compare a trimmed tokenizer with the original.

    Returns the measures, the texts whose pieces are all kept (shortened ones at the end), and those among
    them that get other pieces: there must be none.
    """
    original.backend.no_truncation()
    trimmed.no_truncation()
    mapping = selection.mapping(original.size)
    kept = [text for text in texts if _all_kept(original, mapping, text)]
    whole = set(kept)
    shortened = [_shorten(original, mapping, text) for text in texts if text not in whole]
    shortened = [text for text in shortened if text and _all_kept(original, mapping, text)]
    held = [*kept, *shortened]
    differing = [
        text
        for text in held
        if mapping[_ids(original.backend, text)].tolist() != _ids(trimmed, text).tolist()
    ]
    tokens = _ids_of_all(original.backend, texts)
    sides = [
        _unknown(original.backend, texts, original.special_ids["unk"]),
        _unknown(trimmed, texts, int(mapping[original.special_ids["unk"]])),
    ]
    num_words = sum(len(word_starts(text)) for text in texts)
    num_characters = sum(map(len, texts))
    measured = Agreement(
        num_texts=len(texts),
        num_words=num_words,
        num_characters=num_characters,
        kept_texts=len(kept),
        shortened_texts=len(shortened),
        identical_texts=len(held) - len(differing),
        kept_tokens=float((mapping[tokens] >= 0).mean()) if len(tokens) else 0.0,
        fertility=sides[0][0] / max(1, num_words),
        trimmed_fertility=sides[1][0] / max(1, num_words),
        unknown_share=sides[0][1] / max(1, sides[0][0]),
        trimmed_unknown_share=sides[1][1] / max(1, sides[1][0]),
        unknown_characters=sides[0][2] / max(1, num_characters),
        trimmed_unknown_characters=sides[1][2] / max(1, num_characters),
    )
    return measured, held, differing


def _trim_model(model: Spec, mapping: npt.NDArray[np.int64]) -> Spec:
    """A model's JSON with only the kept entries, under their new ids."""
    trimmed = dict(model)
    if isinstance(model["vocab"], list):
        rows = [(int(mapping[index]), row) for index, row in enumerate(model["vocab"]) if mapping[index] >= 0]
        trimmed["vocab"] = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
        if model.get("unk_id") is not None:
            trimmed["unk_id"] = int(mapping[model["unk_id"]])
        return trimmed
    vocabulary = {
        string: int(mapping[index]) for string, index in model_ids(model).items() if mapping[index] >= 0
    }
    trimmed["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    if "merges" in model:
        trimmed["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if left in vocabulary and right in vocabulary and merged(left, right, model) in vocabulary
        ]
    return trimmed


def _all_kept(original: LoadedTokenizer, mapping: npt.NDArray[np.int64], text: str) -> bool:
    ids = _ids(original.backend, text)
    if (mapping[ids] < 0).any():
        return False
    if original.kind != "wordpiece" or original.special_ids["unk"] not in ids:
        return True
    return all(mapping[index] >= 0 for index in _before_unknown(original, text))


def _before_unknown(original: LoadedTokenizer, text: str) -> set[int]:
    """Ids of the pieces that WordPiece matched in words that it then gave up as unknown.

    They are not in its output, but without them it might match others, and an unknown word become known.
    """
    model = original.spec["model"]
    prefix = model.get("continuing_subword_prefix") or CONTINUING
    vocabulary = model["vocab"]
    normalizer, splitter = original.backend.normalizer, original.backend.pre_tokenizer
    normalised = normalizer.normalize_str(text) if normalizer else text
    matched = set()
    words = [word for word, _ in splitter.pre_tokenize_str(normalised)] if splitter else [normalised]
    for word in words:
        start = 0
        while start < len(word) <= model.get("max_input_chars_per_word", 100):
            lead = prefix if start else ""
            ends = (end for end in range(len(word), start, -1) if lead + word[start:end] in vocabulary)
            end = next(ends, None)
            if end is None:
                break
            matched.add(int(vocabulary[lead + word[start:end]]))
            start = end
    return matched


def _shorten(original: LoadedTokenizer, mapping: npt.NDArray[np.int64], text: str) -> str:
    """The text without the words (between blanks) that need a dropped piece."""
    return " ".join(word for word in text.split() if _all_kept(original, mapping, word))


def _ids(backend: Tokenizer, text: str) -> npt.NDArray[np.int64]:
    return np.array(as_text(backend).encode(text).ids, dtype=np.int64)


def _ids_of_all(backend: Tokenizer, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    encodings = as_text(backend).encode_batch_fast(list(texts), add_special_tokens=False)
    return np.array([index for encoding in encodings for index in encoding.ids], dtype=np.int64)


def _unknown(backend: Tokenizer, texts: Sequence[str], unk_id: int) -> tuple[int, int, int]:
    """(tokens, unknown tokens, characters under them)."""
    num_tokens = num_unknown = num_characters = 0
    for encoding in as_text(backend).encode_batch(list(texts), add_special_tokens=False):
        num_tokens += len(encoding.ids)
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if index == unk_id:
                num_unknown += 1
                num_characters += end - start
    return num_tokens, num_unknown, num_characters


def _refused(tokenizer: LoadedTokenizer, reason: str) -> TokenizerError:
    return TokenizerError(
        "model",
        tokenizer.name,
        f"its tokenizer cannot be trimmed ({reason})",
        "please report this with its tokenizer.json",
    )
