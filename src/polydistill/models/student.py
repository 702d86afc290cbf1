"""Building a student, and initialising it from its teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.errors import ModelError
from polydistill.limits import is_out_of_memory
from polydistill.models.features import output_layer
from polydistill.models.load import check_sizes
from polydistill.models.row_map import MIN_SHARED_PIECES, RowMap, fit_map
from polydistill.tokenization.load import first_position, max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class TeacherRows:
    """A teacher from which a student's initial weights come.

    model        the loaded teacher
    mapping      [teacher's size] teacher id → student id
    ordinary     the teacher's ids of its ordinary pieces
    special_ids  role → the teacher's id
    """

    name: str
    model: PreTrainedModel
    mapping: npt.NDArray[np.int64]
    ordinary: npt.NDArray[np.int64]
    special_ids: dict[str, int]


def student_config(
    model_type: str,
    fields: dict[str, Any],
    *,
    vocabulary_size: int,
    special_ids: dict[str, int],
    max_length: int,
    base: PreTrainedConfig | None = None,
) -> PreTrainedConfig:
    """The configuration of a student.

    fields  the architecture's own; `base` (a teacher's configuration), if given, sets the others
    Raises ModelError for an unknown architecture or field, or too few positions for `max_length` tokens.
    """
    _check_fields(model_type, fields)
    values = base.to_dict() if base is not None and base.model_type == model_type else {}
    for key in (
        "dtype",
        "torch_dtype",
        "_name_or_path",
        "transformers_version",
        "model_type",
        "architectures",
        "id2label",
        "label2id",
    ):
        values.pop(key, None)
    values |= fields
    values |= {
        "vocab_size": vocabulary_size,
        "pad_token_id": special_ids["pad"],
        "bos_token_id": special_ids["cls"],
        "eos_token_id": special_ids["sep"],
        "cls_token_id": special_ids["cls"],
        "sep_token_id": special_ids["sep"],
    }
    try:
        config = AutoConfig.for_model(model_type, **values)
    except Exception as error:  # huggingface_hub's validation raises its own types
        raise ModelError(
            "student.config",
            None,
            f"refused by {model_type} ({' '.join(str(error).split())[:160]})",
            "correct that field",
        ) from error
    if max_positions(config) < max_length:
        raise ModelError(
            "student.config.max_position_embeddings",
            getattr(config, "max_position_embeddings", None),
            f"holds {max_positions(config)} tokens, and sequences have {max_length} (corpora.max_length)",
            "raise it, or lower corpora.max_length",
        )
    return config


def _check_fields(model_type: str, fields: dict[str, Any]) -> None:
    """Raise ModelError for an architecture or a field that transformers does not know."""
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError:
        raise ModelError(
            "student.model_type",
            model_type,
            "transformers knows no such architecture",
            "use a `model_type` such as bert, electra, roberta, modernbert, deberta-v2",
        ) from None
    # A configuration accepts aliases of some fields.
    known = set(default.to_dict()) | set(type(default).attribute_map)
    for name in fields:
        if name not in known:
            raise ModelError(
                f"student.config.{name}",
                None,
                f"{model_type} has no such configuration field",
                f"its fields include {', '.join(sorted(set(default.to_dict()) & _SHAPE_FIELDS))}",
            )


def build_student(
    config: PreTrainedConfig, *, seed: int, field: str = "student.model_type", device: str = "cpu"
) -> PreTrainedModel:
    """A masked language model with random weights, determined by the seed.

    device  `meta` gives shapes without weights, to check a configuration before hours of scoring
    """
    check_sizes(config, field.replace("model_type", "config"))
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        with torch.device(device):
            model = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # architectures raise various types for impossible sizes
        if is_out_of_memory(error):
            raise
        raise ModelError(
            field,
            config.model_type,
            f"cannot be built as a masked language model ({' '.join(str(error).split())[:160]})",
            "use an architecture that `AutoModelForMaskedLM` knows, with sizes that it accepts",
        ) from error
    finally:
        torch.random.set_rng_state(state)
    return model


def check_encoder(student: PreTrainedConfig, teacher: PreTrainedConfig, name: str) -> None:
    """Raise ModelError if a student's configuration does not fit a teacher's encoder."""
    if student.model_type != teacher.model_type:
        raise _shape_error(name, "its architecture", teacher.model_type, student.model_type)
    theirs, ours = teacher.to_dict(), student.to_dict()
    for field in sorted(_SHAPE_FIELDS - {"max_position_embeddings"}):
        if theirs.get(field) != ours.get(field):
            raise _shape_error(name, f"its {field}", theirs.get(field), ours.get(field))


def start_from_teachers(
    student: PreTrainedModel, teachers: Sequence[TeacherRows], *, row_map: RowMap, seed: int
) -> dict[str, Any]:
    """Copy a teacher's encoder and rows into a student, and map the other teachers' rows into its space.

    teachers  the encoder's teacher first; the others in the order of the union
    Returns a record of the origin of the weights. Raises ModelError if the encoder's shape differs.
    """
    first, *others = teachers
    record: dict[str, Any] = {"encoder_from": first.name, "row_map": row_map, "rows": {}}
    target_in, target_bias = _rows_and_bias(student)
    target_out, _ = output_layer(student)
    source_in, source_bias = _rows_and_bias(first.model)
    source_out, _ = output_layer(first.model)
    record["copied_tensors"] = copy_encoder(student, first.name, first.model)
    if source_in.shape[1] != target_in.shape[1]:
        raise _shape_error(
            first.name, "its embeddings", tuple(source_in.shape[1:]), tuple(target_in.shape[1:])
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        tables = [(target_in, source_in, lambda model: _rows_and_bias(model)[0])]
        if target_out.data_ptr() != target_in.data_ptr():
            tables.append((target_out, source_out, lambda model: output_layer(model)[0]))
        have = torch.zeros(len(target_in), dtype=torch.bool)
        for table, source, rows_of in tables:
            have[:] = False
            base = source[torch.from_numpy(first.ordinary)]
            mean, deviation = base.mean(0), base.std(0)
            noise = torch.randn(table.shape, generator=generator)
            table.copy_(mean + noise * deviation)
            _place(table, have, first, source)
            for other in others:
                record["rows"][other.name] = _bring_rows(table, have, other, rows_of(other.model), row_map)
        if target_bias is not None:
            _bring_biases(target_bias, teachers, source_bias)
    record["rows"][first.name] = {"copied": len(first.ordinary)}
    record["random_rows"] = int((~have).sum())
    return record


_SHAPE_FIELDS = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "embedding_size",
    "max_position_embeddings",
    "dim",
    "n_layers",
    "n_heads",
    "hidden_dim",
}


def copy_encoder(student: PreTrainedModel, name: str, teacher: PreTrainedModel) -> int:
    """Copy every tensor that does not depend on the vocabulary; the student may have fewer positions.

    name  the teacher's, for messages
    Returns the number of tensors. Raises ModelError if a shape differs.
    """
    source, target = teacher.state_dict(), student.state_dict()
    rows, bias = _rows_and_bias(student)
    vocabulary = {
        tensor.data_ptr() for tensor in (rows, bias, output_layer(student)[0]) if tensor is not None
    }
    # Where positions are counted from the padding id, they move with that id.
    shift = first_position(teacher.config) - first_position(student.config)
    copied = 0
    with torch.no_grad():
        for key, tensor in target.items():
            # The embeddings and tied tensors; ELECTRA and others hold the vocabulary's bias twice.
            if tensor.data_ptr() in vocabulary or key.endswith(("predictions.bias", "lm_head.bias")):
                continue
            if key not in source:
                raise _shape_error(name, f"it lacks {key}", None, tuple(tensor.shape))
            value = source[key]
            if key.endswith("position_embeddings.weight") and value.shape[1:] == tensor.shape[1:]:
                value = _positions(value, tensor, shift)
            if value.shape != tensor.shape:
                raise _shape_error(name, f"its {key}", tuple(value.shape), tuple(tensor.shape))
            tensor.copy_(value)
            copied += 1
    return copied


def _positions(source: Tensor, target: Tensor, shift: int) -> Tensor:
    """The target's table with the source's positions, shifted by `shift`; the student may have fewer."""
    start = max(0, -shift)
    length = min(len(target) - start, len(source) - start - shift)
    table = target.clone()
    table[start : start + length] = source[start + shift : start + shift + length]
    return table


def _shape_error(name: str, what: str, theirs: object, ours: object) -> ModelError:
    return ModelError(
        "student.encoder_from",
        name,
        f"{what} is {theirs} and the student's is {ours}",
        "set `student.model_type` and `student.config` as the teacher's, or use `init: random`",
    )


def _place(table: Tensor, have: Tensor, teacher: TeacherRows, rows: Tensor) -> None:
    ids = np.concatenate([teacher.ordinary, _specials(teacher)])
    where = torch.from_numpy(teacher.mapping[ids])
    table[where] = rows[torch.from_numpy(ids)].to(table.dtype)
    have[where] = True


def _bring_rows(
    table: Tensor, have: Tensor, other: TeacherRows, rows: Tensor, row_map: RowMap
) -> dict[str, Any]:
    """Map a teacher's rows into the table's space, by a map fitted on shared pieces."""
    source_ids = torch.from_numpy(other.ordinary)
    where = torch.from_numpy(other.mapping[other.ordinary])
    shared = have[where]
    record: dict[str, Any] = {"shared": int(shared.sum()), "new": int((~shared).sum())}
    if row_map != "mean" and int(shared.sum()) >= MIN_SHARED_PIECES:
        mapped, record["fit"] = fit_map(
            rows[source_ids[shared]].double(),
            table[where[shared]].double(),
            rows[source_ids].double(),
            row_map,
        )
        new = mapped[~shared].to(table.dtype)
        record["map"] = row_map
        table[where[~shared]] = new
    else:
        # The rows keep their random values, around the mean of the first teacher's rows.
        record["map"] = "mean"
    have[where] = True
    return record


def _bring_biases(target: Tensor, teachers: Sequence[TeacherRows], first_bias: Tensor | None) -> None:
    """Copy each teacher's output biases, shifted so that shared pieces have the same mean."""
    if first_bias is None:
        return
    target.fill_(float(first_bias[torch.from_numpy(teachers[0].ordinary)].mean()))
    have = torch.zeros(len(target), dtype=torch.bool)
    _place(target, have, teachers[0], first_bias)
    for other in teachers[1:]:
        _, bias = _rows_and_bias(other.model)
        if bias is None:
            continue
        where = torch.from_numpy(other.mapping[other.ordinary])
        values = bias[torch.from_numpy(other.ordinary)].to(target.dtype)
        shared = have[where]
        shift = (
            (target[where][shared] - values[shared]).mean()
            if bool(shared.any())
            else target.mean() - values.mean()
        )
        target[where[~shared]] = values[~shared] + shift
        have[where] = True


def _rows_and_bias(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """(input embedding rows [V, E], output bias [V] or None), as detached views of the parameters."""
    bias = output_layer(model)[1]
    return model.get_input_embeddings().weight.detach(), None if bias is None else bias.detach()


def _specials(teacher: TeacherRows) -> npt.NDArray[np.int64]:
    """The teacher's ids of the five roles."""
    return np.array(list(teacher.special_ids.values()), dtype=np.int64)
