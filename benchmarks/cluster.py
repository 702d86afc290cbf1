"""Scoring on Ray with one worker and two, beside the local engine: same examples, from texts to a store."""

from __future__ import annotations

import itertools
import lzma
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from benchmarks.measure import alternate
from polydistill.config.scoring import Ray, Scoring
from polydistill.config.shared import Masking
from polydistill.models.precision import resolve_dtype
from polydistill.scoring.local import score
from polydistill.scoring.shards import Job
from polydistill.store.reader import Store
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import STUDENT_SPECIALS
from polydistill.tokenization.wordpiece import train_wordpiece

LENGTH, CHARACTERS = 128, 480


class Texts:
    """Texts in memory, as scoring reads them."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self.ids = np.arange(len(texts), dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._texts)

    def texts(self, rows: Any) -> list[str]:
        """The texts at a slice of rows."""
        return self._texts[rows]


def run(
    examples: str = "768", layers: str = "4", hidden: str = "312", rounds: str = "5"
) -> dict[str, object]:
    """Tokens per second of each engine. Workers start beforehand; each computes with one thread.

    layers, hidden  the teacher's: a BERT with random weights and a vocabulary of 21,128 rows
    """
    import ray

    from polydistill.scoring.ray_engine import Workers, score_on_ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    texts, tokenizer = _texts(int(examples))
    teacher = _teacher(int(layers), int(hidden))
    scoring = Scoring(shard_examples=max(1, len(texts) // 12))
    identity = {
        "vocabulary_size": tokenizer.size,
        "max_length": LENGTH,
        "top_k": 8,
        "language": "xx",
        "teacher": "t",
    }
    job = Job(identity, tokenizer, scoring, Masking(), max_length=LENGTH, dtype=resolve_dtype("auto"), seed=0)
    pools = {number: Workers(Ray(workers=number)) for number in (1, 2)}
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        number, last = itertools.count(), {}

        def locally(count: int) -> None:
            with _threads(count):
                last["local"] = folder = Path(name) / str(next(number))
                folder.mkdir()
                score(folder, job, texts, teacher)

        def on_ray(count: int) -> None:
            last[f"ray {count}"] = folder = Path(name) / str(next(number))
            folder.mkdir()
            score_on_ray(folder, job, texts, teacher, workers=pools[count])

        seconds = alternate(
            {
                "local, 1 thread": lambda: locally(1),
                f"local, {threads} threads": lambda: locally(threads),
                "ray, 1 worker": lambda: on_ray(1),
                "ray, 2 workers": lambda: on_ray(2),
            },
            rounds=int(rounds),
        )
        stored = {key: _content(folder) for key, folder in last.items()}
        store = Store(last["local"])
        tokens = sum(shard["tokens"] for shard in store.manifest["shards"])
    for pool in pools.values():
        pool.close()
    ray.shutdown()
    return {
        "model": f"bert {layers} x {hidden}, {len(texts)} examples",
        "tokens": tokens,
        "bytes_equal": all(content == stored["local"] for content in stored.values()),
        "tokens_per_second": {key: round(tokens / value) for key, value in seconds.items()},
        "one_worker_over_local_1_thread": round(seconds["local, 1 thread"] / seconds["ray, 1 worker"], 2),
        "two_workers_over_one": round(seconds["ray, 1 worker"] / seconds["ray, 2 workers"], 2),
        f"two_workers_over_local_{threads}_threads": round(
            seconds[f"local, {threads} threads"] / seconds["ray, 2 workers"], 2
        ),
    }


def _teacher(layers: int, size: int) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=21128,
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=4 * size,
    )
    return AutoModelForMaskedLM.from_config(config).eval()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _texts(number: int) -> tuple[Texts, LoadedTokenizer]:
    """Texts of about LENGTH tokens from the bundled English, and a WordPiece of it."""
    path = Path(str(resources.files("polydistill") / "demo_data" / "en.txt.xz"))
    with lzma.open(path, "rt", encoding="utf-8") as handle:
        lines = [line.strip() for line in handle]
    backend = train_wordpiece(lambda: lines, size=4000, lowercase=True, strip_accents=None)
    roles = {role: backend.token_to_id(piece) for role, piece in STUDENT_SPECIALS.items()}
    joined = " ".join(lines)
    parts = [joined[place : place + CHARACTERS] for place in range(0, len(joined), CHARACTERS)]
    repeated = list(itertools.islice(itertools.cycle(parts), number))
    return Texts(repeated), LoadedTokenizer("t", backend, roles, LENGTH)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
