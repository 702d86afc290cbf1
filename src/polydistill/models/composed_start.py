"""Embedding rows of a vocabulary of the student's own, composed of the rows of teachers' pieces.

Each of the student's pieces has the mean of the rows of the pieces that a teacher spells it with. The teacher
that needs the fewest pieces gives the row; of several, the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polydistill.models.features import output_layer
from polydistill.models.row_map import MIN_SHARED_PIECES, RowMap, fit_map
from polydistill.models.student import copy_encoder
from polydistill.tokenization.crossing import Spellings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SpellingTeacher:
    """A teacher whose rows a student's pieces are composed of.

    spellings    of the student's pieces, in the teacher's ids
    ordinary     the teacher's ids of its ordinary pieces
    special_ids  role → the teacher's id
    """

    name: str
    model: PreTrainedModel
    spellings: Spellings
    ordinary: Ids
    special_ids: dict[str, int]


def choose_teachers(spellings: Sequence[Spellings]) -> Ids:
    """[V] for each of the student's pieces the teacher that spells it with the fewest pieces, the first of
    several; -1 where none can.
    """
    lengths = np.stack([spelling.lengths for spelling in spellings])
    lengths = np.where(lengths > 0, lengths, np.iinfo(np.int64).max)
    return np.where(lengths.min(axis=0) < np.iinfo(np.int64).max, lengths.argmin(axis=0), -1)


def composed(rows: Tensor, spelled: Ids) -> Tensor:
    """[n, d] means of the rows [V, d] of pieces [n, S]; -1 fills a shorter spelling."""
    spelled_ids = torch.from_numpy(spelled)
    present = spelled_ids >= 0
    values = rows[spelled_ids.clamp(min=0)]
    weights = present.to(rows.dtype) / present.sum(1, keepdim=True).clamp(min=1)
    return (values * weights.reshape(*weights.shape, *[1] * (values.dim() - 2))).sum(1)


def start_from_spellings(
    student: PreTrainedModel,
    teachers: Sequence[SpellingTeacher],
    *,
    special_ids: dict[str, int],
    row_map: RowMap,
    seed: int,
) -> dict[str, Any]:
    """Copy a teacher's encoder into a student with a vocabulary of its own, and compose its rows.

    teachers     the encoder's teacher first
    special_ids  role → the student's id
    Rows of other teachers are mapped into the encoder's space by pieces that both have. Returns a record of
    the origin of the weights. Raises ModelError if the encoder's shape differs.
    """
    first = teachers[0]
    record: dict[str, Any] = {"encoder_from": first.name, "row_map": row_map, "rows": {}}
    record["copied_tensors"] = copy_encoder(student, first.name, first.model)
    chosen = choose_teachers([teacher.spellings for teacher in teachers])
    generator = torch.Generator().manual_seed(seed)
    roles = sorted(special_ids)
    ours = torch.tensor([special_ids[role] for role in roles])
    theirs = torch.tensor([first.special_ids[role] for role in roles])
    with torch.no_grad():
        for rows_of in _tables(student):
            table, source = rows_of(student), rows_of(first.model)
            base = source[torch.from_numpy(first.ordinary)]
            table.copy_(base.mean(0) + torch.randn(table.shape, generator=generator) * base.std(0))
            table[ours] = source[theirs]
            for index, teacher in enumerate(teachers):
                where = np.flatnonzero(chosen == index)
                record["rows"][teacher.name] = facts = {
                    "copied": int((teacher.spellings.lengths[where] == 1).sum()),
                    "composed": int((teacher.spellings.lengths[where] > 1).sum()),
                }
                rows: Tensor | None = rows_of(teacher.model)
                if teacher is not first:
                    rows, fit = _mapped(rows_of(teacher.model), teacher, source, first, row_map)
                    facts |= fit
                # Without a map the rows keep their random values, around the mean of the first teacher's.
                if rows is not None:
                    made = composed(rows, teacher.spellings.ids[where])
                    table[torch.from_numpy(where)] = made.to(table.dtype)
        _bring_biases(student, teachers, chosen)
    record["random_rows"] = int((chosen < 0).sum()) - len(roles)
    return record


def _tables(student: PreTrainedModel) -> list[Callable[[PreTrainedModel], Tensor]]:
    """Functions of a model to detached views of its input rows [V, E] and, where the student's are others, of
    its output rows.
    """

    def input_rows(model: PreTrainedModel) -> Tensor:
        rows: Tensor = model.get_input_embeddings().weight.detach()
        return rows

    def output_rows(model: PreTrainedModel) -> Tensor:
        return output_layer(model)[0].detach()

    tied = input_rows(student).data_ptr() == output_rows(student).data_ptr()
    return [input_rows] if tied else [input_rows, output_rows]


def _mapped(
    rows: Tensor, teacher: SpellingTeacher, source: Tensor, first: SpellingTeacher, row_map: RowMap
) -> tuple[Tensor | None, dict[str, Any]]:
    """A teacher's rows in the encoder's space, by a map fitted on the student's pieces that both have; None
    without a map. And the record of it.
    """
    both = np.flatnonzero((teacher.spellings.lengths == 1) & (first.spellings.lengths == 1))
    facts: dict[str, Any] = {"shared": len(both)}
    if row_map == "mean" or len(both) < MIN_SHARED_PIECES:
        return None, facts | {"map": "mean"}
    theirs = torch.from_numpy(teacher.spellings.ids[both, 0])
    ours = torch.from_numpy(first.spellings.ids[both, 0])
    mapped, fit = fit_map(rows[theirs].double(), source[ours].double(), rows.double(), row_map)
    return mapped.to(source.dtype), facts | {"map": row_map, "fit": fit}


def _bring_biases(student: PreTrainedModel, teachers: Sequence[SpellingTeacher], chosen: Ids) -> None:
    """Compose the output biases too, each teacher's shifted to the mean of the first's."""
    target = output_layer(student)[1]
    first = output_layer(teachers[0].model)[1]
    if target is None or first is None:
        return
    mean = float(first.detach()[torch.from_numpy(teachers[0].ordinary)].mean())
    target.detach().fill_(mean)
    for index, teacher in enumerate(teachers):
        bias = output_layer(teacher.model)[1]
        if bias is None:
            continue
        where = np.flatnonzero(chosen == index)
        shift = mean - float(bias.detach()[torch.from_numpy(teacher.ordinary)].mean())
        made = composed(bias.detach()[:, None], teacher.spellings.ids[where])[:, 0]
        target.detach()[torch.from_numpy(where)] = made.to(target.dtype) + shift
