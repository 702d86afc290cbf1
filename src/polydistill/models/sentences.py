"""Sentence encoders: an encoder, a pooling, linear layers, a normalisation. One vector for a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polydistill.disk import write_json
from polydistill.errors import ModelError
from polydistill.models.inputs import length_batches, pad_batch
from polydistill.models.kinds import ENCODER, load_kind
from polydistill.models.load import first_line, is_decoder, model_config
from polydistill.models.sentence_files import DenseFiles, SentenceFiles, write_modules
from polydistill.tokenization.load import LoadedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Sentences that are tokenised at once.
AT_ONCE = 4096


class Dense(nn.Module):
    """A linear layer and an activation, as sentence-transformers has them."""

    def __init__(self, width: int, out: int, *, bias: bool = True, activation: str = "Identity") -> None:
        super().__init__()
        self.linear = nn.Linear(width, out, bias=bias)
        self.activation: nn.Module = getattr(nn, activation)()

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, width] → [B, out]."""
        out: Tensor = self.activation(self.linear(vectors))
        return out


class Normalise(nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, D] → [B, D]."""
        return F.normalize(vectors, dim=1)


class SentenceEncoder(nn.Module):
    """Ids in, one vector a sentence out.

    encoder     of transformers, without a head
    pooling     `mean` over attended tokens, `cls` (the first token) or `max`
    tail        Dense and Normalise modules
    max_length  tokens of a sentence, for the written folder
    It has what Trainer asks a model for, and is written as a sentence-transformers folder.
    """

    def __init__(
        self, encoder: PreTrainedModel, pooling: str, tail: Sequence[nn.Module] = (), *, max_length: int = 512
    ) -> None:
        super().__init__()
        self.encoder, self.pooling, self.max_length = encoder, pooling, max_length
        self.tail = nn.ModuleList(tail)

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.encoder.config

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        dense = [module for module in self.tail if isinstance(module, Dense)]
        return int(dense[-1].linear.out_features if dense else self.config.hidden_size)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, H] float32 pooled hidden states of [B, L] ids."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0].float()
        return pool(hidden, attention_mask, self.pooling)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, D] float32 vectors of [B, L] ids."""
        vectors = self.pooled(input_ids, attention_mask)
        # The layers after the pooling are small: their rounding would be all of an error.
        with torch.autocast(vectors.device.type, enabled=False):
            for module in self.tail:
                vectors = module(vectors)
        return vectors

    def get_output_embeddings(self) -> None:
        """A sentence encoder has no output layer over pieces."""
        return

    def num_parameters(self, exclude_embeddings: bool = False) -> int:
        """The number of its weights."""
        number: int = self.encoder.num_parameters(exclude_embeddings=exclude_embeddings)
        return number + sum(weight.numel() for weight in self.tail.parameters())

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """Estimated operations of a training batch, as transformers counts them."""
        return 6 * self.num_parameters(exclude_embeddings=True) * inputs["input_ids"].numel()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a sentence-transformers folder, without the tokenizer."""
        folder = Path(folder)
        self.encoder.save_pretrained(folder)
        places = write_modules(
            folder,
            width=self.config.hidden_size,
            max_length=self.max_length,
            pooling=self.pooling,
            after=["Dense" if isinstance(module, Dense) else "Normalize" for module in self.tail],
        )
        for module, place in zip(self.tail, places, strict=True):
            if not isinstance(module, Dense):
                continue
            linear, kind = module.linear, type(module.activation)
            write_json(
                place / "config.json",
                {
                    "in_features": linear.in_features,
                    "out_features": linear.out_features,
                    "bias": linear.bias is not None,
                    "activation_function": f"{kind.__module__}.{kind.__qualname__}",
                },
            )
            state = {f"linear.{name}": weight.cpu() for name, weight in linear.state_dict().items()}
            save_file(state, place / "model.safetensors", metadata={"format": "pt"})


def pool(hidden: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """[B, H] one vector for each row of [B, L, H] hidden states; padding does not count."""
    if pooling == "cls":
        return hidden[:, 0]
    mask = attention_mask[:, :, None].to(hidden.dtype)
    if pooling == "max":
        return hidden.masked_fill(mask == 0, -torch.inf).amax(1)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def check_encoder(files: SentenceFiles, field: str) -> Any:
    """The configuration of an encoder; ModelError for a decoder or an encoder with a decoder."""
    config = model_config(files.encoder, revision=files.revision, field=field)
    if is_decoder(config) or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            field,
            files.encoder,
            f"is no encoder alone (model type {config.model_type})",
            "give an encoder, such as BERT, RoBERTa, XLM-R or ModernBERT",
        )
    return config


def load_sentence_encoder(
    files: SentenceFiles, *, max_length: int, allow_pickle: bool = False, field: str = "model"
) -> SentenceEncoder:
    """A sentence encoder in evaluation mode, in float32.

    Raises ModelError and NumericsError as `load_kind` does, and ModelError for a damaged Dense module.
    """
    check_encoder(files, field)
    encoder, _, _ = load_kind(
        files.encoder, ENCODER, revision=files.revision, allow_pickle=allow_pickle, field=field
    )
    tail = [_load_dense(each, field) if each else Normalise() for each in files.tail]
    return SentenceEncoder(encoder, files.pooling, tail, max_length=max_length).eval()


def _load_dense(files: DenseFiles, field: str) -> Dense:
    try:
        state = load_file(files.weights)
        out, width = state["linear.weight"].shape
        dense = Dense(width, out, bias="linear.bias" in state, activation=files.activation)
        dense.load_state_dict({name: weight.float() for name, weight in state.items()})
    except Exception as error:  # safetensors and torch raise their own types for a damaged file
        raise ModelError(
            field, str(files.weights), f"cannot be loaded ({first_line(error)})", "use an undamaged model"
        ) from error
    return dense


def sentence_ids(
    tokenizer: LoadedTokenizer,
    texts: Sequence[str],
    *,
    max_length: int,
    prompt: str = "",
    lowercase: bool = False,
) -> list[npt.NDArray[np.int32]]:
    """[L] ids of each text, special tokens included, cut at max_length tokens as transformers cuts them."""
    backend = tokenizer.backend
    # As sentence-transformers reads text: the string of a special token is that token.
    backend.encode_special_tokens = False
    backend.no_padding()
    backend.enable_truncation(max_length, direction=tokenizer.settings.get("truncation_side", "right"))
    try:
        ids = []
        for start in range(0, len(texts), AT_ONCE):
            part = [prompt + text for text in texts[start : start + AT_ONCE]]
            encodings = backend.encode_batch([text.lower() for text in part] if lowercase else part)
            ids += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        return ids
    finally:
        backend.no_truncation()


def encode_ids(
    model: nn.Module,
    ids: Sequence[npt.NDArray[np.int32]],
    pad_id: int,
    *,
    batch_tokens: int,
    dtype: torch.dtype,
    pooled: bool = False,
) -> npt.NDArray[np.float32]:
    """[N, D] vectors of sentences; with `pooled` [N, H], before the layers that follow the pooling."""
    rows: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(ids)
    for index, row in _batches(model, ids, pad_id, batch_tokens=batch_tokens, dtype=dtype, pooled=pooled):
        rows[index] = row
    return np.stack(rows)


def _batches(
    model: Any,
    ids: Sequence[npt.NDArray[np.int32]],
    pad_id: int,
    *,
    batch_tokens: int,
    dtype: torch.dtype,
    pooled: bool,
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    device = next(model.parameters()).device
    run = model.pooled if pooled else model
    for batch in length_batches([len(row) for row in ids], batch_tokens):
        input_ids, attention = pad_batch([ids[index] for index in batch], pad_id)
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            made = run(input_ids.to(device), attention.to(device))
        yield from zip(batch, made.float().cpu().numpy(), strict=True)
