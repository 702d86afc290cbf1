"""Scoring beside its teacher's forward passes, and beside the naive way: all logits, topk, `datasets`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from benchmarks.measure import alternate
from polydistill.masking import Masked
from polydistill.models.inputs import pad_batch
from polydistill.models.load import load_masked_lm
from polydistill.models.precision import device, resolve_dtype
from polydistill.scoring.predict import predict
from polydistill.store.reader import Store
from polydistill.store.writer import ScoredExample, StoreWriter

TOP_K = 8


@dataclass(frozen=True)
class Shape:
    """Sizes of a teacher with random weights."""

    layers: int
    width: int
    heads: int
    vocabulary: int

    def describe(self) -> str:
        """The shape in words."""
        return f"bert {self.layers} x {self.width}, {self.vocabulary:,} pieces"


SHAPES = {
    "small": Shape(4, 312, 12, 21_128),
    "base": Shape(12, 768, 12, 119_547),
    "tiny": Shape(2, 64, 2, 1000),
}


def run(model: str = "", length: str = "64", batch: str = "64", rounds: str = "5") -> dict[str, object]:
    """Tokens per second of our scoring and its peers on the same batch.

    model  a folder or hub name, or a name in SHAPES: a BERT of that shape with random weights
    """
    torch.manual_seed(0)
    shape = SHAPES.get(model or "small")
    teacher = (_random_teacher(shape) if shape else load_masked_lm(model)).to(device())
    size = teacher.config.vocab_size
    examples = draw_examples(size, int(length), int(batch))
    tokens = sum(len(example.input_ids) for example in examples)
    inputs, attention = (
        part.to(device()) for part in pad_batch([example.input_ids for example in examples], 0)
    )

    @torch.no_grad()
    def forward(module: Any, dtype: torch.dtype) -> None:
        with torch.autocast(device().type, dtype, enabled=dtype != torch.float32):
            module(input_ids=inputs, attention_mask=attention)

    with tempfile.TemporaryDirectory() as name:
        folder, number = Path(name), count()

        def ours(dtype: torch.dtype) -> None:
            _score(teacher, examples, folder / f"ours-{next(number)}", dtype, int(length))

        things: dict[str, Any] = {}
        # float32, and a run's default if it differs.
        kinds = list(dict.fromkeys([torch.float32, resolve_dtype("auto")]))
        for dtype in kinds:
            kind = str(dtype).removeprefix("torch.")
            things[f"scoring, {kind}"] = lambda dtype=dtype: ours(dtype)
            things[f"bare encoder, {kind}"] = lambda dtype=dtype: forward(teacher.base_model, dtype)
            things[f"encoder and logits everywhere, {kind}"] = lambda dtype=dtype: forward(teacher, dtype)
            things[f"naive scoring, {kind}"] = lambda dtype=dtype: _naive(
                teacher, examples, inputs, attention, folder / f"naive-{next(number)}", dtype
            )
        seconds = alternate(things, rounds=int(rounds))
        stored = stored_bytes(teacher, examples, folder)
    speed = {name: round(tokens / value) for name, value in seconds.items()}
    names = [str(dtype).removeprefix("torch.") for dtype in kinds]
    return {
        "model": shape.describe() if shape else model.rsplit("/", 1)[-1],
        "tokens": tokens,
        "tokens_per_second": speed,
        **{
            f"over_{peer.replace(' ', '_')}_{name}": round(
                seconds[f"{peer}, {name}"] / seconds[f"scoring, {name}"], 2
            )
            for peer in ("bare encoder", "naive scoring")
            for name in names
        },
        "bytes_a_position": stored,
    }


def _random_teacher(shape: Shape) -> Any:
    config = AutoConfig.for_model(
        "bert",
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
    )
    return AutoModelForMaskedLM.from_config(config).eval()


def draw_examples(vocabulary_size: int, length: int, number: int) -> list[Masked]:
    """Random masked sequences: nine of ten are full, as after packing, the others are ends of documents."""
    draw = np.random.default_rng(0)
    examples = []
    for row in range(number):
        size = length if row % 10 else int(draw.integers(length // 4, length))
        ids = draw.integers(5, vocabulary_size, size)
        positions = np.sort(draw.choice(size, max(1, round(0.15 * size)), replace=False))
        examples.append(Masked(ids, positions, ids[positions]))
    return examples


def stored_bytes(
    teacher: Any, examples: list[Masked], folder: Path, shard_examples: int = 4096
) -> dict[str, float]:
    """Bytes per masked position on disk, without input ids: our shard of the default size, and `datasets`."""
    from datasets import Dataset

    size = teacher.config.vocab_size
    predictions = _predict(teacher, examples, torch.float32)
    repeated = [index % len(examples) for index in range(shard_examples)]
    chosen, repeats = [examples[i] for i in repeated], [predictions[i] for i in repeated]
    masked = sum(len(example.positions) for example in chosen)
    tokens = sum(len(example.input_ids) for example in chosen)
    _write(chosen, repeats, folder / "shard", size, max(len(example.input_ids) for example in examples))
    ours = Store(folder / "shard").num_bytes - tokens * (2 if size <= 65536 else 4)
    raw = Dataset.from_list(
        [
            {"input_ids": e.input_ids.tolist(), **_lists(e, prediction.top_ids, prediction.top_logprobs)}
            for e, prediction in zip(chosen, repeats, strict=True)
        ]
    )
    raw.save_to_disk(str(folder / "lists"))
    # `datasets` stores a column named input_ids in int32.
    lists = sum(path.stat().st_size for path in (folder / "lists").rglob("*.arrow")) - 4 * tokens
    return {
        "ours": round(ours / masked, 1),
        "int64 and float32 lists in datasets": round(lists / masked, 1),
        "ratio": round(lists / ours, 2),
    }


def _score(teacher: Any, examples: list[Masked], folder: Path, dtype: torch.dtype, length: int) -> None:
    """Our way, from masked examples to a shard on disk."""
    _write(examples, _predict(teacher, examples, dtype), folder, teacher.config.vocab_size, length)


def _predict(teacher: Any, examples: list[Masked], dtype: torch.dtype) -> list[Any]:
    return predict(
        teacher,
        examples,
        ids=range(len(examples)),
        pad_id=0,
        vocabulary_size=teacher.config.vocab_size,
        top_k=TOP_K,
        sampling="top_k",
        dtype=dtype,
        seed=0,
    )


def _write(examples: list[Masked], predictions: list[Any], folder: Path, size: int, length: int) -> None:
    folder.mkdir()
    identity = {
        "vocabulary_size": size,
        "max_length": length,
        "top_k": TOP_K,
        "language": "xx",
        "teacher": "t",
    }
    writer = StoreWriter(folder, identity)
    writer.write(
        0,
        [
            ScoredExample(
                row,
                example.input_ids,
                example.positions,
                example.gold,
                prediction.gold_logprobs,
                prediction.top_ids,
                prediction.top_logprobs,
            )
            for row, (example, prediction) in enumerate(zip(examples, predictions, strict=True))
        ],
    )
    writer.finish({})


def _lists(example: Masked, top_ids: Any, top_logprobs: Any) -> dict[str, Any]:
    """A sequence's predictions as a script keeps them: int64 and float32."""
    return {
        "positions": example.positions.tolist(),
        "labels": example.gold.tolist(),
        "top_ids": top_ids.tolist(),
        "top_logprobs": np.asarray(top_logprobs, dtype=np.float32),
    }


@torch.no_grad()
def _naive(
    teacher: Any,
    examples: list[Masked],
    inputs: torch.Tensor,
    attention: torch.Tensor,
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """What a script does: pad to the maximum, logits everywhere, log-softmax, topk, lists, `save_to_disk`."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    with torch.autocast(device().type, dtype, enabled=dtype != torch.float32):
        logits = teacher(input_ids=inputs, attention_mask=attention).logits
    values, indices = (kept.cpu() for kept in torch.log_softmax(logits.float(), dim=-1).topk(TOP_K, dim=-1))
    inputs = inputs.cpu()
    rows = []
    for row, example in enumerate(examples):
        positions = torch.from_numpy(example.positions)
        kept = _lists(example, indices[row, positions], values[row, positions])
        rows.append({"input_ids": inputs[row].tolist(), **kept})
    Dataset.from_list(rows).save_to_disk(str(folder))
