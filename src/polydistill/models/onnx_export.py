"""Export of a model as an ONNX graph, and the difference of what the two compute."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from polydistill.disk import sync
from polydistill.errors import ModelError, RecipeError
from polydistill.models.load import first_line
from polydistill.models.onnx_runtime import OnnxModel, quiet, require_onnx

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# torch's exporter writes it without conversion; every onnxruntime since 1.14 reads it.
OPSET = 18
# A protobuf message is at most 2 GiB; larger weights go to a separate file, whose name ends so.
INLINE_BYTES = 1_800_000_000
DATA = "_data"


class Inputs(NamedTuple):
    """A model's inputs, each [B, L]; `token_types` is None for a model with one type."""

    ids: Tensor
    attention: Tensor
    token_types: Tensor | None


class Agreement(NamedTuple):
    """Two models' outputs at attended positions.

    difference, largest  the largest absolute difference; the first model's largest absolute value
    same                 share of positions with the same most likely piece; of outputs that are no pieces,
                         the mean cosine of a text's outputs
    """

    difference: float
    largest: float
    same: float

    @property
    def relative(self) -> float:
        """The difference over the largest value; NaN if either is not a number."""
        return self.difference / self.largest


def takes_token_types(model: PreTrainedModel, tokenizer_inputs: Sequence[str]) -> bool:
    """Whether a model has more than one token type and its tokenizer writes them.

    tokenizer_inputs  the names of the tokenizer's outputs (`model_input_names`)
    """
    written = "token_type_ids" in tokenizer_inputs
    types = getattr(model.config, "type_vocab_size", 1) or 1
    return written and types > 1 and "token_type_ids" in inspect.signature(model.forward).parameters


def check_opset(opset: int) -> None:
    """Raise RecipeError for an opset that torch's exporter cannot write or onnx does not have."""
    require_onnx()
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise RecipeError(
            "opset",
            opset,
            f"torch's exporter writes none below {OPSET}, and onnx has at most {newest}",
            f"give {OPSET}, which every onnxruntime since 1.14 reads",
        )


def export_onnx(
    model: PreTrainedModel,
    path: Path,
    *,
    token_types: bool,
    outputs: Sequence[str] = ("logits",),
    opset: int = OPSET,
) -> None:
    """Write a model's graph: input_ids, attention_mask (and token_type_ids) [batch, tokens] int64 → outputs
    [batch, ...] float32, any batch and length.

    path   of the graph; a tied table is stored once, and weights beyond 1.8 GB go to `<path>_data`
    outputs  fields of the model's output
    opset  of ONNX's own operators, at least 18
    Raises RecipeError for an opset that cannot be written, ModelError if the architecture cannot be traced.
    """
    check_opset(opset)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if token_types else [])]
    generator = torch.Generator().manual_seed(0)
    # No dimension is 1 and no two are equal: the exporter would treat that as a constraint.
    ids = torch.randint(0, model.config.vocab_size, (2, 11), generator=generator)
    arguments = [ids, torch.ones_like(ids).index_fill_(1, torch.tensor([9, 10]), 0)]
    arguments += [torch.zeros_like(ids)] if token_types else []
    axes = {0: "batch", 1: "tokens"}
    try:
        with quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                _Outputs(model, outputs).eval(),
                tuple(arguments),
                dynamo=True,
                input_names=names,
                output_names=list(outputs),
                dynamic_shapes=tuple(axes for _ in names),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # tracing and the traced model raise various types
        raise ModelError(
            "model",
            model.config.model_type,
            f"cannot be exported with opset {opset} ({first_line(error)})",
            f"try opset {OPSET}, or report this architecture",
        ) from error
    exported = program.model.opset_imports.get("")
    if exported != opset:
        raise RecipeError("opset", opset, f"the graph came out in opset {exported}", f"give {OPSET}")
    _forget_sources(program.model)
    with quiet():
        _save(program, path, big=_bytes(model) > INLINE_BYTES)
    for written in path.parent.glob(path.name + "*"):
        sync(written)


def agreement(one: Tensor, other: Tensor, attention: Tensor) -> Agreement:
    """Compare logits [B, L, V] where attention [B, L] is 1."""
    attended = attention.bool()
    one, other = one[attended], other[attended]
    same = (one.argmax(-1) == other.argmax(-1)).float().mean()
    return Agreement(float((one - other).abs().max()), float(one.abs().max()), float(same))


@torch.no_grad()
def compare_onnx(model: PreTrainedModel, exported: Sequence[OnnxModel], inputs: Inputs) -> list[Agreement]:
    """The agreement of each exported masked language model with the model itself on one batch."""
    (own,) = _own_outputs(model, inputs, ("logits",))
    return [agreement(own, graph.logits(*inputs), inputs.attention) for graph in exported]


@torch.no_grad()
def compare_outputs(
    model: PreTrainedModel,
    exported: Sequence[OnnxModel],
    inputs: Inputs,
    outputs: Sequence[str],
    *,
    pooled: bool,
) -> list[Agreement]:
    """As `compare_onnx` for any outputs, each [B, L, ...], or [B, ...] if `pooled`: the worst of them."""
    own = _own_outputs(model, inputs, outputs)
    attention = inputs.attention[:, :1] if pooled else inputs.attention
    agreed = []
    for graph in exported:
        pairs = list(zip(own, graph.outputs(*inputs), strict=True))
        if pooled:
            pairs = [(one[:, None], other[:, None]) for one, other in pairs]
        each = [_output_agreement(one, other, attention) for one, other in pairs]
        worst = max(each, key=lambda one: (one.relative != one.relative, one.relative))
        agreed.append(worst._replace(same=min(one.same for one in each)))
    return agreed


def _output_agreement(one: Tensor, other: Tensor, attention: Tensor) -> Agreement:
    """Compare outputs [B, L] or [B, L, n] where attention [B, L] is 1."""
    mask = attention.bool().reshape(*attention.shape, *[1] * (one.dim() - 2))
    one, other = torch.where(mask, one, 0.0).flatten(1), torch.where(mask, other, 0.0).flatten(1)
    cosine = nn.functional.cosine_similarity(one, other).mean()
    return Agreement(float((one - other).abs().max()), float(one.abs().max()), float(cosine))


def _own_outputs(model: PreTrainedModel, inputs: Inputs, outputs: Sequence[str]) -> list[Tensor]:
    types = {} if inputs.token_types is None else {"token_type_ids": inputs.token_types}
    made = model(input_ids=inputs.ids, attention_mask=inputs.attention, **types)
    return [getattr(made, name).float() for name in outputs]


class _Outputs(nn.Module):
    """The model with tensors as inputs and outputs."""

    def __init__(self, model: PreTrainedModel, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.outputs = model, tuple(outputs)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        made = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(getattr(made, name) for name in self.outputs)


def _save(program: Any, path: Path, *, big: bool) -> None:
    if not big:
        program.save(path, external_data=False)
        return
    import onnx

    # torch names the separate file otherwise than its readers do.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        program.save(Path(folder) / path.name, external_data=True)
        written = onnx.load(Path(folder) / path.name)
    onnx.save_model(written, path, save_as_external_data=True, location=path.name + DATA)


def _bytes(model: PreTrainedModel) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _forget_sources(graph: Any) -> None:
    """Remove the source lines of operators, which name files on this machine."""
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    graph.graph.metadata_props.clear()
