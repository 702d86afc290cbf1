"""A student made of a teacher's layers: the same architecture with fewer layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polydistill.errors import ModelError
from polydistill.models.features import layer_list
from polydistill.models.narrow import Narrowing, Widths, weight_axes
from polydistill.models.student import build_student, student_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TOKEN_TYPES, POSITIONS = "token_type_embeddings.weight", "position_embeddings.weight"


def check_extractable(config: PreTrainedConfig, model: str, *, field: str = "teacher") -> None:
    """Raise ModelError for a teacher whose layers share weights, or that has no MLM head."""
    if hasattr(config, "num_hidden_groups"):
        raise ModelError(
            field,
            model,
            f"{config.model_type} shares one layer's weights among all its layers, so none can be left out",
            "use a teacher with separate weights per layer; `polydistill vocab trim` makes this one smaller",
        )
    if config.model_type == "electra" and "ElectraForPreTraining" in (config.architectures or ()):
        raise ModelError(
            field,
            model,
            "is ELECTRA's discriminator, which does not predict tokens",
            "use the generator's checkpoint (ElectraForMaskedLM)",
        )


def choose_layers(
    init: str | Sequence[int], num_layers: int | None, depth: int
) -> tuple[int, list[int] | None]:
    """(number of student layers, their indices among the teacher's `depth` layers; None for random weights).

    init        `stride` (evenly spaced from the first; Sun et al. 2019, PKD-skip: every second one),
                `distilbert` (from the first to the last; Sanh et al. 2019's code: 0 2 4 7 9 11 of 12),
                `bottom`, `top`, `random`, or layer indices from 0
    num_layers  None for half the teacher's, at least 1
    Raises ModelError for more layers than the teacher has, or a layer that it lacks.
    """
    if not isinstance(init, str):
        for index in init:
            if not 0 <= index < depth:
                raise ModelError(
                    "student.init",
                    str(list(init)),
                    f"the teacher has no layer {index}: it has {depth}, from 0 to {depth - 1}",
                    "give layers that it has",
                )
        return len(init), list(init)
    size = max(1, depth // 2) if num_layers is None else num_layers
    if size > depth:
        raise ModelError(
            "student.num_layers", size, f"the teacher has {depth} layers", f"give {depth} or fewer"
        )
    if init == "random":
        return size, None
    if init == "stride":
        return size, [place * depth // size for place in range(size)]
    if init == "distilbert":
        # round(place * (depth - 1) / (size - 1)), halves rounded up
        steps = max(1, size - 1)
        return size, [(2 * place * (depth - 1) + steps) // (2 * steps) for place in range(size)]
    return size, list(range(size)) if init == "bottom" else list(range(depth - size, depth))


def extracted_config(
    teacher: PreTrainedConfig,
    fields: Mapping[str, Any],
    *,
    num_layers: int,
    layers: Sequence[int] | None,
    special_ids: dict[str, int],
    max_length: int,
) -> PreTrainedConfig:
    """The student's configuration: the teacher's, with `num_layers` layers and a single token type.

    teacher  its configuration, after trimming if there is any
    fields   the architecture's own, where they differ from the teacher's
    layers   see `choose_layers`; each keeps its type of attention where types alternate
    Raises ModelError for fields that cannot be set, or too few positions for `max_length` tokens.
    """
    depth_name = teacher.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for name in ("num_hidden_layers", depth_name, "vocab_size"):
        if name in fields:
            raise ModelError(
                f"student.config.{name}",
                fields[name],
                "is set by the run itself",
                "use student.num_layers for the depth, trim for the vocabulary",
            )
    values = {**fields, depth_name: num_layers}
    kinds = getattr(teacher, "layer_types", None)
    if kinds is not None and "layer_types" not in fields:
        values["layer_types"] = [kinds[index] for index in (layers or range(num_layers))]
    if _single_type(teacher):
        values["type_vocab_size"] = 1
    return student_config(
        teacher.model_type,
        values,
        vocabulary_size=teacher.vocab_size,
        special_ids=special_ids,
        max_length=max_length,
        base=teacher,
    )


def check_extraction(
    config: PreTrainedConfig,
    teacher: PreTrainedConfig,
    layers: Sequence[int] | None,
    narrowing: Narrowing | None = None,
) -> None:
    """Raise ModelError if a student configuration does not fit these layers; loads no weights."""
    shapes = build_student(config, seed=0, device="meta")
    if layers is not None:
        original = build_student(teacher, seed=0, field="teacher", device="meta")
        _sources(shapes, original, layers, _Taken(original, narrowing))


class _Taken:
    """A teacher's tensors as a student takes them: narrowed, if it is narrower."""

    def __init__(self, teacher: PreTrainedModel, narrowing: Narrowing | None) -> None:
        self.tensors, self.narrowing = teacher.state_dict(), narrowing
        if narrowing is not None:
            self.axes, widths = weight_axes(teacher), Widths.of(teacher.config)
            self.head_size = widths.hidden // widths.heads

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.tensors[name]
        if self.narrowing is None:
            return tensor
        return self.narrowing(tensor, self.axes[name], self.head_size)


def extract_student(
    teacher: PreTrainedModel,
    config: PreTrainedConfig,
    layers: Sequence[int] | None,
    *,
    seed: int,
    narrowing: Narrowing | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """(student before training, record of the origin of its weights).

    teacher    the loaded model
    config     see `extracted_config`
    layers     of the teacher, in the student's order; None for random weights
    narrowing  the parts of these layers that a narrower student takes
    With all of the teacher's layers the student computes the same as the teacher, for texts of one segment.
    """
    student = build_student(config, seed=seed)
    record: dict[str, Any] = {"seed": seed, "layers": layers if layers is None else list(layers)}
    single = _single_type(teacher.config)
    if layers is not None:
        source, target = _Taken(teacher, narrowing), student.state_dict()
        names = _sources(student, teacher, layers, source)
        with torch.no_grad():
            for name, origin in names.items():
                taken = source[origin]
                target[name].copy_(taken[: len(target[name])] if _is_types(name) else taken)
            if single:
                _fold_types(target)
        record["copied_tensors"] = len(names)
    if single:
        record["token_types"] = "dropped" if layers is None else "row 0 in the positions"
        _freeze_types(student)
    return student, record


def _single_type(config: PreTrainedConfig) -> bool:
    """Whether token types are added to a position table, so that one type can be folded into it.

    DistilBERT's script drops token types without replacement; but the layers above them were trained with row
    0 in every sum.
    """
    if getattr(config, "type_vocab_size", 0) < 2:
        return False
    shapes = build_student(config, seed=0, field="teacher", device="meta").state_dict()
    types = [name for name in shapes if _is_types(name)]
    places = [name.removesuffix(TOKEN_TYPES) + POSITIONS for name in types]
    return len(types) == 1 and places[0] in shapes and shapes[places[0]].shape[1] == shapes[types[0]].shape[1]


def _is_types(name: str) -> bool:
    return name.endswith(TOKEN_TYPES)


def _fold_types(state: Mapping[str, Tensor]) -> None:
    """Add row 0 of the token types to every position's row, with the same sum, and zero it."""
    types = next(name for name in state if _is_types(name))
    state[types.removesuffix(TOKEN_TYPES) + POSITIONS].add_(state[types][0])
    state[types].zero_()


def _freeze_types(student: nn.Module) -> None:
    """Keep the row at zero: BERT-like architectures cannot drop it."""
    for name, parameter in student.named_parameters():
        if _is_types(name):
            with torch.no_grad():
                parameter.zero_()
            parameter.requires_grad_(False)


def _sources(
    student: PreTrainedModel, teacher: PreTrainedModel, layers: Sequence[int], taken: _Taken
) -> dict[str, str]:
    """Name of each student tensor → name of the teacher tensor it starts from; shapes are checked."""
    check_extractable(teacher.config, teacher.config.model_type)
    prefix = layer_list(teacher) + "."
    source, target = taken.tensors, student.state_dict()
    _check_layers(source, target, prefix, layers, teacher.config.model_type)
    names = {}
    for name, tensor in target.items():
        origin = name
        if name.startswith(prefix):
            place, _, rest = name.removeprefix(prefix).partition(".")
            origin = f"{prefix}{layers[int(place)]}.{rest}"
        theirs = taken[origin].shape if origin in source else None
        if theirs is not None and _is_types(name):
            theirs = theirs if len(tensor) > theirs[0] else tensor.shape[:1] + theirs[1:]
        if theirs != tensor.shape:
            raise ModelError(
                "student.config",
                None,
                f"the teacher's {origin} is {None if theirs is None else tuple(theirs)} and the student's "
                f"{tuple(tensor.shape)}",
                "keep the teacher's fields that set a weight's shape, give student.hidden_size, "
                "intermediate_size or num_attention_heads, or use `init: random`",
            )
        names[name] = origin
    return names


def _check_layers(
    source: Iterable[str], target: Iterable[str], prefix: str, layers: Sequence[int], architecture: str
) -> None:
    """Raise ModelError where a layer's weights differ in kind from those of the place it takes.

    ModernBERT's first layer has no norm before its attention, for the embeddings' norm precedes it. Another
    layer in its place would lose its norm, and the first layer has none to take to another place.
    """
    theirs, ours = _by_layer(source, prefix), _by_layer(target, prefix)
    for place, index in enumerate(layers):
        if ours[place] != theirs[index]:
            differing = ", ".join(sorted(ours[place] ^ theirs[index]))
            raise ModelError(
                "student.init",
                str(list(layers)),
                f"{architecture}'s layer {index} cannot be student layer {place}: one lacks {differing}",
                "use layer 0 first and nowhere else: `stride`, `distilbert`, `bottom` or such a list",
            )


def _by_layer(names: Iterable[str], prefix: str) -> dict[int, set[str]]:
    layers: dict[int, set[str]] = {}
    for name in names:
        if name.startswith(prefix):
            place, _, rest = name.removeprefix(prefix).partition(".")
            layers.setdefault(int(place), set()).add(rest)
    return layers
