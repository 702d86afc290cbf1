"""A growing corpus: speed, peak memory and open files of each stage at 1 and 10 times the text.

The stages are preparing, scoring and training for one epoch. Each size runs in a fresh process, with a
teacher and a student so small that the rest of the cost shows. Memory is anonymous memory (RssAnon), sampled:
the kernel can take back pages of mapped files at any time, so they do not count. Compare the peaks of a
stage's first and last half to see whether its memory still grows.
"""

from __future__ import annotations

import json
import lzma
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from polydistill.training.objectives import StoredLabels

BASE_CHARACTERS = 1_000_000
BATCH = 32


def run(base: str = str(BASE_CHARACTERS), *sizes: str) -> dict[str, object]:
    """The stages over base × size characters for each size, by default 1 and 10."""
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes or ("1", "10"):
            text = Path(folder) / "text.txt"
            characters = write_text(text, int(base) * int(size))
            corpus = str(Path(folder) / f"corpus-{size}")
            command = [sys.executable, "-m", "benchmarks.scale", str(text), corpus]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent
            )
            stage_figures = json.loads(done.stdout.strip().splitlines()[-1])
            measured[f"{size} x"] = {"characters": characters, **stage_figures}
            print(f"{size} x: {stage_figures}", file=sys.stderr, flush=True)
    return {"stages": measured}


def write_text(path: Path, characters: int) -> int:
    """Lines of the demo's text, repeated with their words in a new order, so that no line is a duplicate."""
    source = lzma.decompress((files("polydistill") / "demo_data" / "de.txt.xz").read_bytes()).decode("utf-8")
    lines = [line.split() for line in source.splitlines() if line.strip()]
    draw = random.Random(0)
    written = 0
    with path.open("w", encoding="utf-8") as handle:
        while written < characters:
            for words in lines:
                draw.shuffle(words)
                # A number distinguishes short lines too.
                line = " ".join([*words, str(draw.randrange(10**6))])
                handle.write(line + "\n")
                written += len(line) + 1
                if written >= characters:
                    break
    return written


def anonymous_mebibytes() -> int:
    """This process' memory that no file backs."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) // 1024
    raise OSError("no RssAnon in /proc/self/status")


def open_files() -> int:
    """Files, pipes and sockets that this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (a path of each would be opened in turn)


@contextmanager
def watched(figures: dict[str, Any], stage: str) -> Iterator[None]:
    """Write the block's peaks of anonymous memory and open files into `figures`."""
    samples = [(anonymous_mebibytes(), open_files())]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            samples.append((anonymous_mebibytes(), open_files()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        memory = [sample[0] for sample in samples]
        half = max(1, len(memory) // 2)
        figures[f"{stage}_peak_mebibytes"] = max(memory)
        figures[f"{stage}_first_half_mebibytes"] = max(memory[:half])
        figures[f"{stage}_last_half_mebibytes"] = max(memory[half:], default=memory[-1])
        figures[f"{stage}_open_files"] = max(sample[1] for sample in samples)


def stages(text: str, folder: str) -> None:
    """Build one corpus, score it and train on it in this process; print each stage's speed and memory."""

    from transformers import AutoConfig, AutoModelForMaskedLM

    from polydistill.config.scoring import Scoring
    from polydistill.config.shared import Corpora, Masking, Source
    from polydistill.corpora.corpus import CorpusFields, build_corpus
    from polydistill.corpora.counting import TokenCounter
    from polydistill.corpora.examples import Examples
    from polydistill.models.precision import resolve_dtype
    from polydistill.scoring.local import score
    from polydistill.scoring.shards import Job
    from polydistill.tokenization.load import LoadedTokenizer
    from polydistill.tokenization.pieces import STUDENT_SPECIALS
    from polydistill.tokenization.wordpiece import train_wordpiece

    with Path(text).open(encoding="utf-8") as handle:
        head = handle.readlines(1_000_000)
    backend = train_wordpiece(lambda: head, size=4000, lowercase=True, strip_accents=None)
    roles = {role: backend.token_to_id(piece) for role, piece in STUDENT_SPECIALS.items()}
    tokenizer = LoadedTokenizer("t", backend, roles, 64)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=tokenizer.size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = AutoModelForMaskedLM.from_config(config).eval()
    figures: dict[str, Any] = {}
    place = Path(folder)
    for name in ("corpus", "store"):
        (place / name).mkdir(parents=True)
    started = time.perf_counter()
    with watched(figures, "corpora"):
        build_corpus(
            place / "corpus",
            sources=[Source(path=text)],
            evaluation={},
            settings=Corpora(max_length=64),
            count_tokens=TokenCounter([backend]),
            max_tokens=62,
            fields=CorpusFields("languages.xx.text", "languages.xx.evaluation"),
        )
    figures["corpora_characters_per_second"] = round(
        Path(text).stat().st_size / (time.perf_counter() - started)
    )
    examples = Examples(place / "corpus" / "train.arrow")
    identity = {
        "vocabulary_size": tokenizer.size,
        "max_length": 64,
        "top_k": 8,
        "language": "xx",
        "teacher": "t",
    }
    with watched(figures, "scoring"):
        job = Job(
            identity, tokenizer, Scoring(), Masking(), max_length=64, dtype=resolve_dtype("auto"), seed=0
        )
        scored = score(place / "store", job, examples, model)
    figures["scoring_tokens_per_second"] = round(scored["tokens_scored"] / scored["seconds"])
    with watched(figures, "training"):
        figures["training_tokens_per_second"] = round(_train(model, tokenizer, place))
    print(json.dumps(figures))


def _train(model: Any, tokenizer: Any, place: Path) -> float:
    """Tokens per second of one epoch."""
    import numpy as np

    from benchmarks.contestants import Clock
    from polydistill.config.shared import Distillation
    from polydistill.store.reader import Store
    from polydistill.training.arguments import check_arguments
    from polydistill.training.data import StoredExamples
    from polydistill.training.run import train

    store = Store(place / "store")
    choice = np.stack([np.zeros(len(store), dtype=np.int64), np.arange(len(store))], axis=1)
    data = StoredExamples([store], [np.arange(tokenizer.size)], choice)
    values = check_arguments(
        {"max_steps": max(2, len(store) // BATCH), "per_device_train_batch_size": BATCH, "report_to": []}
    )
    ticks = Clock()
    train(
        model,
        {"xx": data},
        [1.0],
        folder=place / "checkpoints",
        arguments=values,
        objective=StoredLabels(Distillation(), ["xx"]),
        pad_id=0,
        max_length=64,
        seed=0,
        say=lambda line: None,
        callbacks=[ticks],
    )
    each = float(data.lengths.mean()) * BATCH
    return each * (len(ticks.times) - 1) / (ticks.times[-1] - ticks.times[0])


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    stages(*sys.argv[1:])
