"""Inputs of a masked language model's output layer at masked positions, without logits elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from polydistill.errors import ModelError
from polydistill.padding import pad_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names of the layers that make queries, keys and values, by architecture; a single name makes all three.
QUERY_KEY_VALUE = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
    ("Wqkv",),
)

_BERT = ("intermediate", "output")
# Architecture → the first and the last module of a layer's feed-forward part. Others may treat positions
# together, pad them or run a layer twice, so their layers stay whole.
FEED_FORWARD = {
    **dict.fromkeys(("bert", "camembert", "deberta-v2", "electra", "mpnet"), _BERT),
    **dict.fromkeys(("roberta", "roformer", "xlm-roberta"), _BERT),
    "distilbert": ("ffn", "ffn"),
    "modernbert": ("mlp_norm", "mlp"),
}


def masked_features(model: nn.Module, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
    """[N, E] inputs of the output layer at masked positions, differentiable.

    inputs     input_ids [B, L], attention_mask [B, L] and further arguments of the model
    positions  [N] indices in the flattened batch, row * L + column

    A hook on the encoder passes only these rows to the head's transform. A pre-hook on the output embeddings
    keeps its input and passes no rows, so the layer itself costs nothing: a loss takes `output_layer` and
    makes logits in chunks. Heads of masked language models treat each position separately. Where an encoder's
    output is not [B, L, H], the head runs at all positions and the rows are selected after it.
    """
    with last_layer_at(unwrapped(model), positions):
        return features_and_states(model, inputs, positions)[0]


def features_and_states(
    model: nn.Module, inputs: dict[str, Tensor], positions: Tensor
) -> tuple[Tensor, Tensor | None]:
    """(see `masked_features`, the encoder's last hidden states [B, L, H] or None for another shape).

    The states are those of all positions: the last layer is computed everywhere.
    """
    kept: list[Tensor] = []
    states: list[Tensor] = []
    selected = False
    shape = inputs["input_ids"].shape

    def select(_: nn.Module, __: tuple[object, ...], output: Any) -> Any:
        nonlocal selected
        hidden = output[0]
        if hidden.shape[:-1] != shape:
            return output
        selected = True
        states.append(hidden)
        rows = hidden.flatten(0, 1).index_select(0, positions)[None]
        if isinstance(output, tuple):
            return (rows, *output[1:])
        output["last_hidden_state"] = rows
        return output

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        flat = hidden.reshape(-1, hidden.shape[-1])
        kept.append(flat if selected else flat.index_select(0, positions))
        return (flat[:0], *arguments[1:])

    number = len(positions)
    # Padding repeats the batch's first token; its rows are dropped below.
    positions = pad_rows(positions)
    inner = unwrapped(model)
    handles = [output_embeddings(inner).register_forward_pre_hook(keep)]
    if inner.base_model is not inner:
        handles.append(inner.base_model.register_forward_hook(select))
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return kept[0][:number], states[0] if states else None


@contextmanager
def last_layer_at(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Compute the last layer's feed-forward part at these positions only, where that is exact.

    positions  [N] indices in the flattened batch, without repetition

    No other position of the last layer is read by a head of a masked language model. Elsewhere its output is
    then 0 or lacks the feed-forward part. Layers stay whole in architectures that are not in FEED_FORWARD, in
    models that compute in chunks or are compiled, and in those that run a layer again in the backward pass.
    """
    names = FEED_FORWARD.get(model.config.model_type)
    if names is None or _runs_elsewhere(model):
        yield
        return
    layer = cast(nn.ModuleList, model.get_submodule(layer_list(model)))[-1]
    shapes: list[torch.Size] = []

    def gather(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        *others, whole = arguments
        shapes.append(whole.shape)
        return (*others, whole.flatten(0, -2).index_select(0, pad_rows(positions))[None])

    def scatter(_: nn.Module, __: tuple[object, ...], output: Tensor) -> Tensor:
        rows = output[0, : len(positions)]
        whole = rows.new_zeros(shapes[-1][:-1].numel(), rows.shape[-1])
        return whole.index_copy(0, positions, rows).view(*shapes[-1][:-1], -1)

    first, last = (getattr(layer, name) for name in names)
    handles = [first.register_forward_pre_hook(gather), last.register_forward_hook(scatter)]
    if names == _BERT:
        # The last module adds the part's input.
        handles.append(last.register_forward_pre_hook(gather))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _runs_elsewhere(model: PreTrainedModel) -> bool:
    """Whether a layer's modules see other rows than the batch's, or run without their hooks."""
    return (
        bool(getattr(model.config, "chunk_size_feed_forward", 0))
        or hasattr(model, "_orig_mod")
        or any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    )


def layer_list(model: PreTrainedModel) -> str:
    """The name of the list that holds a model's layers, such as `bert.encoder.layer`.

    Raises ModelError if there is none: the layers are shared, or in several blocks.
    """
    depth = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return str(name)
    raise ModelError(
        "teacher",
        model.config.model_type,
        f"its {depth} layers are not in one list, so none can be left out",
        "use a teacher such as BERT, DistilBERT, RoBERTa, ELECTRA or ModernBERT",
    )


@contextmanager
def queries_keys_values(model: nn.Module, layers: str) -> Iterator[list[Tensor]]:
    """A list that collects the last layer's queries, keys and values, each [B, L, W], of a run within.

    layers  the name of the list that holds the model's layers
    Raises ModelError for an architecture whose layers of QUERY_KEY_VALUE are unknown.
    """
    layer = unwrapped(model).get_submodule(layers)[-1]
    modules = {name.rpartition(".")[2]: module for name, module in layer.named_modules()}
    names = next((group for group in QUERY_KEY_VALUE if all(name in modules for name in group)), None)
    if names is None:
        raise ModelError(
            "losses.relation",
            None,
            f"{unwrapped(model).config.model_type} has no queries, keys and values that can be read",
            "set losses.relation to 0",
        )
    made: list[Tensor] = []

    def take(_: nn.Module, __: tuple[object, ...], output: Tensor) -> None:
        made.extend(output.chunk(3, -1) if len(names) == 1 else [output])

    handles = [modules[name].register_forward_hook(take) for name in names]
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


def unwrapped(model: Any) -> PreTrainedModel:
    """The model inside a data-parallel wrapper (its `module`); a caller runs the wrapper's forward."""
    while not hasattr(model, "get_output_embeddings"):
        model = model.module
    return model


def output_embeddings(model: PreTrainedModel) -> nn.Module:
    """The linear layer that makes the logits."""
    layer = model.get_output_embeddings()
    if layer is None:
        raise TypeError(f"{type(model).__name__} has no output embeddings")
    return layer  # type: ignore[no-any-return]


def output_layer(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """The output layer's weight [V, E] and its bias [V] or None."""
    layer: Any = output_embeddings(model)
    return layer.weight, getattr(layer, "bias", None)


def output_layer_or_none(model: Any) -> tuple[Tensor, Tensor | None]:
    """As `output_layer`; an empty weight for a model without output embeddings, as a sentence encoder."""
    if model.get_output_embeddings() is None:
        return torch.empty(0, 0), None
    return output_layer(model)
