"""Which pieces of a vocabulary are kept when it is trimmed to the text of some languages."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from polydistill.errors import RecipeError, TokenizerError
from polydistill.tokenization.encode import as_text
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import CONTINUING, Spec, is_unused
from polydistill.tokenization.scripts import script_of

TRIMMABLE = ("wordpiece", "unigram", "byte_level", "bpe")
# Documents that are tokenised at once: the encodings of a whole batch are in memory.
BATCH_DOCUMENTS = 1024

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Frequency:
    """The number of documents of a language in which each piece occurs.

    counts  [tokenizer's size] int64
    """

    counts: npt.NDArray[np.int64]
    num_documents: int

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """[tokenizer's size] the share of documents that contain the piece."""
        return self.counts / max(1, self.num_documents)


@dataclass(frozen=True)
class Selection:
    """The pieces that are kept, and why.

    kept     [n] int64: new id → old id
    reasons  reason → number of pieces: `special` (roles and added tokens), `characters` (without which a
             character would become unknown), `used` (by the text), `merges` (parts that kept pieces are
             merged from)
    dropped  script → ids of the characters that were given up because the text does not write it
    """

    kept: npt.NDArray[np.int64]
    reasons: dict[str, int]
    dropped: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def mapping(self, size: int) -> npt.NDArray[np.int64]:
        """[size] int64: old id → new id, -1 for dropped pieces."""
        mapping = np.full(size, -1, dtype=np.int64)
        mapping[self.kept] = np.arange(len(self.kept))
        return mapping


def document_frequency(backend: Tokenizer, documents: Iterable[str], size: int) -> Frequency:
    """Count the documents that contain each piece, without the special tokens around a document.

    size  one more than the tokenizer's largest id
    """
    backend = as_text(backend)
    counts = np.zeros(size, dtype=np.int64)
    num_documents = 0
    remaining = iter(documents)
    while batch := list(islice(remaining, BATCH_DOCUMENTS)):
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            counts[np.unique(np.array(encoding.ids, dtype=np.int64))] += 1
        num_documents += len(batch)
    return Frequency(counts, num_documents)


class TrimFields(NamedTuple):
    """The fields of a caller's trim settings, for messages."""

    model: str = "model"
    size: str = "size"
    min_document_share: str = "min_document_share"


def select(
    tokenizer: LoadedTokenizer,
    frequencies: Mapping[str, Frequency],
    *,
    min_document_share: float | None = None,
    size: int | None = None,
    fixed_id: int | None = None,
    scripts: Collection[str] | None = None,
    fields: TrimFields = TrimFields(),
) -> Selection:
    """Choose the pieces to keep; their new ids follow the order of the old ones.

    frequencies         language → document frequencies; a piece counts by the language that uses it most, so
                        that languages with little text are not crowded out; if empty, only obligatory pieces
                        are kept
    min_document_share  what a piece needs in one language, in (0, 1]; with neither this nor `size`, one
                        occurrence
    size                maximum number of pieces: the most frequent, of equal ones those with the lower id
    fields              the fields of the caller's settings, for messages
    fixed_id            an old id that must not change: some architectures count positions from pad's
    scripts             characters of other scripts are kept only where text uses them; None: all are kept
    Raises TokenizerError for a kind of tokenizer that cannot be trimmed, RecipeError for an impossible share
    or size.
    """
    _check(tokenizer, min_document_share, size, fields)
    entries = Entries(tokenizer, scripts)
    kept = entries.special | entries.characters
    reasons = {"special": len(entries.special), "characters": len(kept) - len(entries.special)}
    if size is not None and size < len(kept):
        raise RecipeError(
            fields.size,
            size,
            f"{tokenizer.name} keeps at least {len(kept):,} pieces ({reasons['special']:,} special tokens "
            f"and {reasons['characters']:,} characters, so that no text "
            f"{'' if scripts is None else 'of the kept scripts '}becomes unknown)",
            f"use {len(kept):,} or more",
        )
    none = np.zeros(tokenizer.size)
    shares = np.max([none, *(frequency.shares for frequency in frequencies.values())], axis=0)
    shares[[index for index, piece in enumerate(tokenizer.pieces) if piece is None]] = 0
    used = merges = 0
    for index in np.lexsort((np.arange(len(shares)), -shares)):
        if shares[index] < (min_document_share or 0) or shares[index] == 0:
            break
        if index in kept:
            continue
        parts = entries.parts(int(index)) - kept
        if size is not None and len(kept) + 1 + len(parts) > size:
            continue
        kept |= parts | {int(index)}
        used, merges = used + 1, merges + len(parts)
    dropped = {script: sorted(ids - kept) for script, ids in entries.foreign.items() if ids - kept}
    return Selection(entries.order(kept, fixed_id), reasons | {"used": used, "merges": merges}, dropped)


class Entries:
    """A vocabulary's entries as strings, and the dependencies between them.

    scripts  the scripts whose characters have to stay; None: of all
    """

    def __init__(self, tokenizer: LoadedTokenizer, scripts: Collection[str] | None = None) -> None:
        self.scripts = scripts
        self.kind = tokenizer.kind
        self.model: Spec = tokenizer.spec["model"]
        self.ids = model_ids(self.model)
        self.strings = {index: string for string, index in self.ids.items()}
        roles = set(tokenizer.special_ids.values())
        self.special = roles | {
            int(token["id"]) for token in tokenizer.spec["added_tokens"] if not is_unused(token["content"])
        }

    @cached_property
    def characters(self) -> set[int]:
        """Ids without which a known character would become unknown, `foreign` ones aside.

        A Unigram also keeps an entry with its lowest score, from which the score of an unknown character is
        computed.
        """
        kept = self._characters - {index for ids in self.foreign.values() for index in ids}
        if self.kind == "unigram":
            scores = [score for _, score in self.model["vocab"]]
            lowest = min(scores)
            if all(scores[index] > lowest for index in kept | self.special if index < len(scores)):
                kept.add(scores.index(lowest))
        return kept

    @cached_property
    def foreign(self) -> dict[str, set[int]]:
        """Script that need not stay → ids of `_characters` that only it needs; an entry of several such
        scripts counts for the first.
        """
        foreign: dict[str, set[int]] = {}
        # The entries of a byte-level model are bytes, which belong to no script.
        if self.scripts is None or self.kind == "byte_level":
            return foreign
        for index in self._characters:
            found = [script for script in map(script_of, self.strings[index]) if script]
            if found and not self._is_byte(index) and not any(script in self.scripts for script in found):
                foreign.setdefault(found[0], set()).add(index)
        return foreign

    def _is_byte(self, index: int) -> bool:
        return _BYTE.fullmatch(self.strings[index]) is not None

    @cached_property
    def _characters(self) -> set[int]:
        """Ids of entries of one character or byte, in each form that the model uses, and of entries with a
        character that has no entry of its own.
        """
        kept = set()
        for string, index in self.ids.items():
            if index in self.special or is_unused(string):
                continue
            atoms = self.atoms(string)
            if (
                len(atoms) == 1
                or _BYTE.fullmatch(string)
                or (self.kind in ("wordpiece", "unigram") and not all(atom in self.ids for atom in atoms))
            ):
                kept.add(index)
        return kept

    def atoms(self, string: str) -> list[str]:
        """The smallest entries that spell an entry: its characters, in the model's form for their place."""
        if self.kind == "unigram":
            return list(string)
        prefix = self.model.get("continuing_subword_prefix") or (
            "" if self.kind != "wordpiece" else CONTINUING
        )
        suffix = self.model.get("end_of_word_suffix") or ""
        continues = bool(prefix) and string.startswith(prefix) and len(string) > len(prefix)
        ends = bool(suffix) and string.endswith(suffix) and len(string) > len(suffix)
        body = string.removeprefix(prefix) if continues else string
        atoms = list(body.removesuffix(suffix) if ends else body)
        atoms = [atom if place == 0 and not continues else prefix + atom for place, atom in enumerate(atoms)]
        return [*atoms[:-1], atoms[-1] + suffix] if ends else atoms

    def parts(self, index: int) -> set[int]:
        """Ids of the entries that a byte-pair model merges into this one, by the only path that it takes.

        No merge crosses the borders of a final piece. So within a text the model merges a piece exactly as it
        merges the piece alone: lowest rank first, of equal ones the leftmost. Other merges that would make
        the same string never happen.
        """
        if self.kind not in ("byte_level", "bpe"):
            return set()
        symbols = self.atoms(self.strings[index]) if index in self.strings else []
        made: list[str] = list(symbols)
        while len(symbols) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in pairwise(symbols)]
            rank = min(ranks)
            if rank == len(self._ranks):
                # Not the result of merges: only a whole word (`ignore_merges`) becomes this entry.
                return set()
            place = ranks.index(rank)
            symbols[place : place + 2] = [merged(symbols[place], symbols[place + 1], self.model)]
            made.append(symbols[place])
        return {self.ids[string] for string in made} - {index}

    def order(self, kept: set[int], fixed_id: int | None) -> npt.NDArray[np.int64]:
        """[n] kept ids in their old order; added tokens that the model lacks come after its entries."""
        rows = set(range(len(self.model["vocab"]))) if self.kind == "unigram" else self.strings.keys()
        own, added = sorted(kept & rows), sorted(kept - rows)
        if fixed_id in own and fixed_id < len(own):
            own.remove(fixed_id)
            own.insert(fixed_id, fixed_id)
        return np.array([*own, *added], dtype=np.int64)

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        ranks: dict[tuple[str, str], int] = {}
        for rank, (left, right) in enumerate(self.model["merges"]):
            ranks[left, right] = rank
        return ranks


def model_ids(model: Spec) -> dict[str, int]:
    """String → id of a model's entries; if a Unigram lists a string twice, the last id, which text gets."""
    if isinstance(model["vocab"], dict):
        return {string: int(index) for string, index in model["vocab"].items()}
    return {string: index for index, (string, _) in enumerate(model["vocab"])}


def merged(left: str, right: str, model: Spec) -> str:
    """What a byte-pair model merges two neighbours into."""
    return left + right[len(model.get("continuing_subword_prefix") or "") :]


def _check(
    tokenizer: LoadedTokenizer, min_document_share: float | None, size: int | None, fields: TrimFields
) -> None:
    check_trimmable(tokenizer, field=fields.model)
    if size is not None and min_document_share is not None:
        raise RecipeError(
            fields.size,
            size,
            f"min_document_share {min_document_share} is set too",
            "set only one of the two",
        )
    if min_document_share is not None and not 0 < min_document_share <= 1:
        raise RecipeError(
            fields.min_document_share,
            min_document_share,
            "is not a share of documents",
            "use a number above 0 and at most 1, such as 0.0005",
        )


def check_trimmable(tokenizer: LoadedTokenizer, *, field: str = "model") -> None:
    """Raise TokenizerError for a kind of tokenizer that cannot be trimmed."""
    if tokenizer.kind not in TRIMMABLE:
        raise TokenizerError(
            field,
            tokenizer.name,
            f"a {tokenizer.kind} tokenizer cannot be trimmed",
            "words that are dropped from it would have no pieces; use a model with WordPiece, Unigram or BPE",
        )
