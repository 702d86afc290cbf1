"""A narrower model of a teacher's weights: which dimensions, heads and feed-forward units it keeps.

A teacher's weights are tables over a few axes: the dimensions of the residual stream, each layer's attention
heads and its feed-forward units. A narrower model has the same tables with fewer rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polydistill.errors import ModelError
from polydistill.models.features import layer_list

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Space = Literal["hidden", "heads", "units"]
Scores = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


class Layout(NamedTuple):
    """The modules of a layer by what they read and write.

    into_heads, out_of_heads  queries, keys and values; the attention's output
    into_units, out_of_units  of the feed-forward part
    fused   how many tables `into_heads` holds one after the other; gated: the same of `into_units`
    """

    into_heads: tuple[str, ...]
    out_of_heads: str
    into_units: str
    out_of_units: str
    fused: int = 1
    gated: int = 1


_BERT = Layout(
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
# Architecture → its layers. All have hidden_size = heads x head size.
LAYOUTS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
    "distilbert": Layout(
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin", "ffn.lin1", "ffn.lin2"
    ),
    "modernbert": Layout(("attn.Wqkv",), "attn.Wo", "mlp.Wi", "mlp.Wo", fused=3, gated=2),
}
# Parts of names of tables whose rows are pieces, positions or types.
TABLES = ("embeddings", "decoder", "vocab_projector")
# Ends of names of the output layer's bias, one number for each piece.
PIECES = ("predictions.bias", "lm_head.bias", "decoder.bias", "vocab_projector.bias")


class Widths(NamedTuple):
    """A model's widths: dimensions of the residual stream, attention heads, feed-forward units."""

    hidden: int
    heads: int
    units: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Widths:
        """Those of a configuration."""
        units: int = getattr(config, _field(config, "intermediate_size"), 0)
        return cls(config.hidden_size, config.num_attention_heads, units)


class Axis(NamedTuple):
    """An axis of a weight.

    number  of the axis
    space   what it goes over
    layer   of the space; None for the residual stream, which all layers share
    tables  of the space, one after the other, along the axis
    """

    number: int
    space: Space
    layer: int | None = None
    tables: int = 1


class Importance(NamedTuple):
    """What each part of a teacher adds to its loss, see `measure_importance`.

    hidden [H]; heads [L, A] and units [L, I], by the teacher's layers
    """

    hidden: Scores
    heads: Scores
    units: Scores


@dataclass(frozen=True)
class Narrowing:
    """The parts of a teacher that a narrower model keeps, in the teacher's order.

    hidden        [H'] dimensions of the residual stream
    heads, units  by the teacher's layers, [A'] and [I']
    """

    hidden: Ids
    heads: tuple[Ids, ...]
    units: tuple[Ids, ...]

    def __call__(self, weight: Tensor, axes: tuple[Axis, ...], head_size: int) -> Tensor:
        """A weight of the teacher with the kept rows and columns alone.

        head_size  dimensions of a head
        """
        for axis in axes:
            kept = self._kept(axis, head_size, weight.shape[axis.number])
            weight = weight.index_select(axis.number, torch.from_numpy(kept).to(weight.device))
        return weight

    def _kept(self, axis: Axis, head_size: int, size: int) -> Ids:
        if axis.space == "hidden":
            return self.hidden
        assert axis.layer is not None
        if axis.space == "units":
            kept = self.units[axis.layer]
        else:
            kept = (self.heads[axis.layer][:, None] * head_size + np.arange(head_size)).ravel()
        return (np.arange(axis.tables)[:, None] * (size // axis.tables) + kept).ravel()


def width_fields(
    teacher: PreTrainedConfig, given: Mapping[str, int | None], fields: Mapping[str, Any], *, copied: bool
) -> dict[str, int]:
    """The configuration fields of a student's widths, by the architecture's own names.

    given   `hidden_size`, `intermediate_size` and `num_attention_heads` of the recipe; None: not given
    fields  `student.config`
    copied  whether the student starts from the teacher's weights. Then a head keeps its size, so the hidden
            size is a multiple of it, and either of hidden size and heads gives the other: BERT and those
            after it have hidden_size = num_attention_heads x head size.
    Raises ModelError for widths that such a student cannot have.
    """
    widths = {name: size for name, size in given.items() if size is not None}
    if not widths:
        return {}
    if copied:
        widths = _of_whole_heads(teacher, widths)
    named = {}
    for name, size in widths.items():
        own = _field(teacher, name)
        for alias in {name, own} & set(fields):
            raise ModelError(
                f"student.config.{alias}",
                fields[alias],
                f"student.{name} {size} is given too",
                "give it once",
            )
        named[own] = size
    return named


def _field(config: PreTrainedConfig, name: str) -> str:
    """The architecture's own name of a width."""
    if name == "intermediate_size" and hasattr(config, "hidden_dim"):
        return "hidden_dim"
    return str(config.attribute_map.get(name, name))


def _of_whole_heads(teacher: PreTrainedConfig, widths: dict[str, int]) -> dict[str, int]:
    """The widths with hidden size and heads completed; ModelError unless they are of whole heads."""
    theirs = Widths.of(teacher)
    if teacher.model_type not in LAYOUTS:
        name, size = next(iter(widths.items()))
        raise ModelError(
            f"student.{name}",
            size,
            f"it is not known which weights of {teacher.model_type} make its heads and units",
            f"use a teacher of {', '.join(LAYOUTS)}, or `init: random`",
        )
    most = dict(zip(("hidden_size", "num_attention_heads", "intermediate_size"), theirs, strict=True))
    for name, size in widths.items():
        if size > most[name]:
            raise ModelError(
                f"student.{name}",
                size,
                f"the teacher has {most[name]}",
                f"give {most[name]} or less, or use `init: random`",
            )
    each = theirs.hidden // theirs.heads
    hidden, heads = widths.get("hidden_size"), widths.get("num_attention_heads")
    if hidden is None and heads is None:
        return widths
    if hidden is not None and (hidden % each or heads not in (None, hidden // each)):
        several = [size for size in (hidden // each * each, -(-hidden // each) * each) if size]
        remedy = (
            f"leave num_attention_heads out: it is {hidden // each}"
            if hidden % each == 0
            else f"give {' or '.join(map(str, dict.fromkeys(several)))}, or use `init: random`"
        )
        raise ModelError(
            "student.hidden_size",
            hidden,
            f"is not {'a multiple of' if heads is None else f'{heads} times'} {each}, the size of the "
            f"teacher's heads, which are kept whole",
            remedy,
        )
    heads = heads if hidden is None else hidden // each
    assert heads is not None
    return widths | {"hidden_size": heads * each, "num_attention_heads": heads}


def is_narrower(config: PreTrainedConfig, teacher: PreTrainedConfig) -> bool:
    """Whether a student of the teacher's architecture has other widths."""
    return Widths.of(config) != Widths.of(teacher)


def first_parts(config: PreTrainedConfig, teacher: PreTrainedConfig) -> Narrowing:
    """The first dimensions, heads and units: of the right shapes, for checks that need no weights."""
    ours, depth = Widths.of(config), teacher.num_hidden_layers
    heads, units = np.arange(ours.heads), np.arange(ours.units)
    return Narrowing(np.arange(ours.hidden), (heads,) * depth, (units,) * depth)


def most_important(importance: Importance, config: PreTrainedConfig) -> Narrowing:
    """The parts of largest importance, as many as the student's configuration has; first ones of equal."""
    ours = Widths.of(config)

    def best(scores: Scores, number: int) -> Ids:
        return np.sort(np.argsort(-scores, kind="stable")[:number])

    return Narrowing(
        best(importance.hidden, ours.hidden),
        tuple(best(scores, ours.heads) for scores in importance.heads),
        tuple(best(scores, ours.units) for scores in importance.units),
    )


def narrowing_record(importance: Importance, narrowing: Narrowing) -> dict[str, dict[str, Any]]:
    """For each width: how many are kept of how many, and the share of their summed importance."""
    record: dict[str, dict[str, Any]] = {}
    for name, scores, kept in (
        ("hidden_size", importance.hidden[None], (narrowing.hidden,)),
        ("num_attention_heads", importance.heads, narrowing.heads),
        ("intermediate_size", importance.units, narrowing.units),
    ):
        held = sum(float(row[chosen].sum()) for row, chosen in zip(scores, kept, strict=True))
        record[name] = {
            "kept": len(kept[0]),
            "of": scores.shape[1],
            "importance": round(held / max(float(scores.sum()), 1e-300), 4),
        }
    return record


def weight_axes(model: PreTrainedModel) -> dict[str, tuple[Axis, ...]]:
    """Name of each weight of a model in LAYOUTS → its axes that narrow."""
    prefix, layout = layer_list(model) + ".", LAYOUTS[model.config.model_type]
    axes = {}
    for name, weight in model.state_dict().items():
        if name.startswith(prefix):
            place, _, rest = name.removeprefix(prefix).partition(".")
            axes[name] = _layer_axes(rest.rpartition(".")[0], weight, layout, int(place))
        else:
            axes[name] = _outer_axes(name, weight, model.config)
    return axes


def _layer_axes(module: str, weight: Tensor, layout: Layout, layer: int) -> tuple[Axis, ...]:
    """The axes of a layer's weight [out, in], or of a bias or norm [out]; ModelError for an unknown table."""
    out, into = Axis(0, "hidden"), Axis(1, "hidden")
    if module in layout.into_heads:
        out = Axis(0, "heads", layer, layout.fused)
    elif module == layout.into_units:
        out = Axis(0, "units", layer, layout.gated)
    elif module == layout.out_of_heads:
        into = Axis(1, "heads", layer)
    elif module == layout.out_of_units:
        into = Axis(1, "units", layer)
    elif weight.ndim > 1:
        raise ModelError(
            "teacher",
            None,
            f"its layers have a table of an unknown kind ({module}), which cannot be narrowed",
            "leave hidden_size, intermediate_size and num_attention_heads out of `student`",
        )
    return (out, into)[: weight.ndim]


def _outer_axes(name: str, weight: Tensor, config: PreTrainedConfig) -> tuple[Axis, ...]:
    """The axes of a weight of embeddings or head: embeddings, norms and the head's transform."""
    if weight.ndim == 2 and any(part in name for part in TABLES):
        return (Axis(1, "hidden"),)
    if name.endswith(PIECES):
        return ()
    hidden = config.hidden_size
    return tuple(Axis(number, "hidden") for number, size in enumerate(weight.shape) if size == hidden)
