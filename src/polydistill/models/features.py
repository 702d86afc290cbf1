"""What a masked language model's output layer sees at masked positions, without the logits elsewhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def masked_features(model: nn.Module, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
    """[N, E] inputs of the output layer at masked positions; autograd goes through.

    inputs     input_ids [B, L], attention_mask [B, L] and whatever else the model takes
    positions  [N] places in the flattened batch, row * L + column

    A hook on the encoder hands only these rows on, so that the head's transform sees no others, and a pre-hook on
    the output embeddings keeps what comes and hands on no rows, so that the layer itself costs nothing: a loss takes
    `output_layer` and makes the logits in chunks. Heads of masked language models see each position alone; where an
    encoder's output is not [B, L, H], the head runs at all positions and the rows are taken behind it.
    """
    kept: list[Tensor] = []
    selected = False
    shape = inputs["input_ids"].shape

    def select(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        nonlocal selected
        hidden = output[0]
        if hidden.shape[:-1] != shape:
            return output
        selected = True
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

    # A wrapper for data parallelism has the model in `module`, and its own forward pass is the one to call.
    inner: Any = model
    while not hasattr(inner, "get_output_embeddings"):
        inner = inner.module
    handles = [output_embeddings(inner).register_forward_pre_hook(keep)]
    if inner.base_model is not inner:
        handles.append(inner.base_model.register_forward_hook(select))
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return kept[0]


def output_embeddings(model: Any) -> nn.Module:
    """The linear layer that makes the logits."""
    layer = model.get_output_embeddings()
    if layer is None:
        raise TypeError(f"{type(model).__name__} has no output embeddings")
    return layer  # type: ignore[no-any-return]


def output_layer(model: Any) -> tuple[Tensor, Tensor | None]:
    """The output layer's weight [V, E] and bias [V], if there is one."""
    layer: Any = output_embeddings(model)
    return layer.weight, getattr(layer, "bias", None)
