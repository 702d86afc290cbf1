"""Export of a masked language model as an ONNX graph, and the difference of its logits."""

from __future__ import annotations

import inspect
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
# A protobuf message is at most 2 GiB; larger weights go to a separate file.
INLINE_BYTES = 1_800_000_000


class Inputs(NamedTuple):
    """A model's inputs, each [B, L]; `token_types` is None for a model with one type."""

    ids: Tensor
    attention: Tensor
    token_types: Tensor | None


class Agreement(NamedTuple):
    """Two models' logits at attended positions.

    difference, largest  the largest absolute difference; the first model's largest absolute logit
    same                 share of positions with the same most likely piece
    """

    difference: float
    largest: float
    same: float

    @property
    def relative(self) -> float:
        """The difference over the largest logit; NaN if either is not a number."""
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


def export_onnx(model: PreTrainedModel, path: Path, *, token_types: bool, opset: int = OPSET) -> None:
    """Write a masked language model's graph: input_ids, attention_mask (and token_type_ids) [batch, tokens]
    int64 → logits [batch, tokens, V] float32, any batch and length.

    path   of the graph; a tied table is stored once, and weights beyond 1.8 GB go to `<path>.data`
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
                _Logits(model).eval(),
                tuple(arguments),
                dynamo=True,
                input_names=names,
                output_names=["logits"],
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
        program.save(path, external_data=_bytes(model) > INLINE_BYTES)
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
    """The agreement of each exported model with the model itself on one batch."""
    types = {} if inputs.token_types is None else {"token_type_ids": inputs.token_types}
    own = model(input_ids=inputs.ids, attention_mask=inputs.attention, **types).logits.float()
    return [agreement(own, graph.logits(*inputs), inputs.attention) for graph in exported]


class _Logits(nn.Module):
    """The model with tensors as inputs and output."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits


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
