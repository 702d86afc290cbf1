"""The union of teachers' vocabularies, and the map of each teacher's ids into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from polydistill.tokenization.pieces import ROLES, STUDENT_SPECIALS, Piece, to_wordpiece

UNK = ROLES.index("unk")
# Role → the id of the special token in a vocabulary that the package makes.
ROLE_IDS = {role: index for index, role in enumerate(ROLES)}


class HasVocabulary(Protocol):
    """What a union needs from a tokenizer: its canonical pieces by id, and the ids of its roles."""

    @property
    def pieces(self) -> Sequence[Piece | None]: ...
    @property
    def special_ids(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class Planned:
    """A vocabulary that will be made: what an architecture needs to know of it."""

    size: int
    special_ids: dict[str, int] = field(default_factory=lambda: dict(ROLE_IDS))


@dataclass(frozen=True)
class Union:
    """A student vocabulary.

    pieces  canonical pieces from id len(ROLES) on; the ids before them are the special tokens in ROLES' order
    maps    for each teacher, in order: [teacher's size] int64, teacher id → student id, for every id: special
            tokens are mapped by role; unused slots and special tokens without a role to unk
    """

    pieces: tuple[Piece, ...]
    maps: tuple[npt.NDArray[np.int64], ...]

    @property
    def size(self) -> int:
        """Number of ids, dense from 0."""
        return len(ROLES) + len(self.pieces)

    @property
    def special_ids(self) -> dict[str, int]:
        """Role → student id."""
        return dict(ROLE_IDS)

    def strings(self) -> list[str]:
        """The WordPiece vocabulary, by id."""
        return [STUDENT_SPECIALS[role] for role in ROLES] + [to_wordpiece(piece) for piece in self.pieces]


def unite(teachers: Sequence[HasVocabulary]) -> Union:
    """The union of teachers' pieces, in the order of teachers and of their ids (MergeDistill, step 3)."""
    index_of: dict[Piece, int] = {}
    maps = []
    for teacher in teachers:
        mapping = np.full(len(teacher.pieces), UNK, dtype=np.int64)
        for index, piece in enumerate(teacher.pieces):
            if piece is not None:
                mapping[index] = len(ROLES) + index_of.setdefault(piece, len(index_of))
        for student_id, role in enumerate(ROLES):
            mapping[teacher.special_ids[role]] = student_id
        maps.append(mapping)
    return Union(tuple(index_of), tuple(maps))


def overlap(teachers: Sequence[HasVocabulary]) -> npt.NDArray[np.int64]:
    """[T, T] numbers of canonical pieces that two teachers share; the diagonal has each teacher's own."""
    vocabularies = [{piece for piece in teacher.pieces if piece is not None} for teacher in teachers]
    return np.array([[len(row & column) for column in vocabularies] for row in vocabularies], dtype=np.int64)
