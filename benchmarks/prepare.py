"""Preparing text: characters a second by one process and by several, beside the bare tokenizer, and memory.

Each measurement runs in a fresh process, in turn with the others. The tokenizer is a cased WordPiece of the
text's own 16,000 pieces, the sequences have 128 tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from loky import cpu_count
from tokenizers import Tokenizer

from polydistill.config.shared import Corpora, Source
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.counting import TokenCounter
from polydistill.corpora.pool import Alone, Pool, Processes
from polydistill.corpora.ray_pool import RayTasks
from polydistill.corpora.sources import read_texts
from polydistill.tokenization.wordpiece import train_wordpiece

PIECES, LENGTH = 16_000, 128
SAMPLE_CHARACTERS = 5_000_000
# Wikipedia in 104 languages, for the model: characters, and the share of the largest (docs/cluster.md).
WIKIPEDIA_CHARACTERS, LARGEST_SHARE, LANGUAGES = 60e9, 0.21, 104


def run(text: str = "", rounds: str = "3", growth: str = "10,100") -> dict[str, object]:
    """Speed on a text, memory over a text that grows, and a model of 104 languages with the speed's costs.

    text    files or folders, separated by commas; by default the demo's four languages
    growth  millions of characters
    """
    cores = cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        paths = text.split(",") if text else [str(files("polydistill") / "demo_data" / "*.txt.xz")]
        sources = [Source(path=path) for path in paths]
        sample = list(islice_characters(sources, SAMPLE_CHARACTERS))
        train_wordpiece(lambda: sample, size=PIECES, lowercase=False, strip_accents=False).save(
            str(tokenizer)
        )
        speeds: dict[str, list[dict[str, Any]]] = {}
        for _ in range(int(rounds)):
            for mode in ("bare 1", f"bare {cores}", "processes 1", f"processes {cores}", f"ray {cores}"):
                measured = _fresh(mode, str(tokenizer), paths)
                speeds.setdefault(mode, []).append(measured)
                print(mode, measured, file=sys.stderr, flush=True)
        memory = {}
        for size in growth.split(",") if growth else []:
            grown = Path(folder) / f"{size}.txt"
            _write_words(sample, grown, round(float(size) * 1e6))
            memory[f"{size} M characters"] = _fresh(f"processes {cores}", str(tokenizer), [str(grown)])
            grown.unlink()
    one, many = (_medians(speeds[f"processes {number}"]) for number in (1, cores))
    bare_one, bare_many = (_medians(speeds[f"bare {number}"]) for number in (1, cores))
    ray = _medians(speeds[f"ray {cores}"])
    equal = {measured.get("bytes") for mode in speeds for measured in speeds[mode]} - {None}
    million = one["characters"] / 1e6
    costs = {"worker": many["worker_seconds"] / million, "driver": many["driver_seconds"] / million}
    found: dict[str, Any] = {
        "text": {"characters (M)": million, "bytes equal, for 1 process, all and Ray": len(equal) == 1},
        "million characters a second": {
            "bare tokenizer, 1 thread": million / bare_one["seconds"],
            f"bare tokenizer, {cores} threads": million / bare_many["seconds"],
            "prepared, 1 process": million / one["seconds"],
            f"prepared, {cores} processes": million / many["seconds"],
            f"prepared, Ray, {cores} tasks": million / ray["seconds"],
        },
        "ratios": {
            f"{cores} processes over 1": one["seconds"] / many["seconds"],
            "1 process over the bare tokenizer's thread": bare_one["seconds"] / one["seconds"],
            f"{cores} processes over {cores} threads": bare_many["seconds"] / many["seconds"],
            "cores that one driver keeps busy": costs["worker"] / costs["driver"] + 1,
        },
        "processor seconds a million characters": costs,
        "peak MiB, all processes": {size: measured["peak_mebibytes"] for size, measured in memory.items()},
        "model: Wikipedia in 104 languages": _simulate(costs["worker"], costs["driver"]),
    }
    if not memory:
        del found["peak MiB, all processes"]
    return rounded(found)


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """The values with three significant digits."""
    return {
        name: rounded(value)
        if isinstance(value, dict)
        else float(f"{value:.3g}")
        if isinstance(value, float)
        else value
        for name, value in values.items()
    }


def islice_characters(sources: list[Source], most: int) -> Iterator[str]:
    """Lines from the begin of each source, of `most` characters in all."""
    for source in sources:
        seen = 0
        for text in read_texts([source], "text"):
            yield from text.split("\n")
            seen += len(text)
            if seen * len(sources) > most:
                break


def _simulate(worker: float, driver: float) -> dict[str, dict[str, float]]:
    """Hours and efficiency for numbers of cores, of corpora with Zipf sizes, one after the other.

    worker, driver  processor seconds a million characters
    A corpus takes as long as its driver, or as the rounds of its parts (1 MiB) on the workers, twice: cleaned
    and packed; a corpus of one part is the driver's alone.
    """
    # The exponent that gives the largest language its share.
    low, high = 0.5, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        share = 1 / sum(rank**-middle for rank in range(1, LANGUAGES + 1))
        low, high = (middle, high) if share < LARGEST_SHARE else (low, middle)
    total = sum(rank**-low for rank in range(1, LANGUAGES + 1))
    sizes = [WIKIPEDIA_CHARACTERS / 1e6 * rank**-low / total for rank in range(1, LANGUAGES + 1)]
    work = sum(sizes) * (worker + driver)
    figures = {}
    for cores in (1, 2, 4, 8, 16, 32, 64):
        seconds = 0.0
        for size in sizes:
            parts = max(1, round(size))
            rounds = -(-parts // cores)
            busy = size * worker * rounds * cores / parts
            alone = cores == 1 or parts == 1
            # The driver needs a core too.
            shared = (busy + size * driver) / cores
            seconds += size * (worker + driver) if alone else max(size * driver, shared)
        figures[f"{cores} cores"] = {"hours": seconds / 3600, "efficiency": work / seconds / cores}
    return figures


def _medians(measured: list[dict[str, Any]]) -> dict[str, float]:
    return {
        name: median(each[name] for each in measured)
        for name, value in measured[0].items()
        if isinstance(value, int | float)
    }


def _fresh(mode: str, tokenizer: str, paths: list[str]) -> dict[str, Any]:
    engine, number = mode.split()
    environment = os.environ | {"RAYON_NUM_THREADS": number, "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, "-m", "benchmarks.prepare", engine, number, tokenizer, *paths]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        env=environment,
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _write_words(sample: list[str], path: Path, characters: int) -> None:
    """Lines of the sample with their words in a new order, and now and then a new word."""
    draw = random.Random(0)
    lines = [line.split() for line in sample if line.strip()]
    written = 0
    with path.open("w", encoding="utf-8") as handle:
        while written < characters:
            for words in lines:
                draw.shuffle(words)
                line = " ".join([*words, f"{draw.randrange(10**7):x}"])
                handle.write(line + "\n")
                written += len(line) + 1
                if written >= characters:
                    break


def measure(engine: str, number: int, tokenizer: str, paths: list[str]) -> dict[str, Any]:
    """One measurement in this process."""
    backend = Tokenizer.from_file(tokenizer)
    sources = [Source(path=path) for path in paths]
    if engine == "bare":
        lines = (line for text in read_texts(sources, "text") for line in text.split("\n"))
        seconds, characters = 0.0, 0
        while chunk := list(islice(lines, 4000)):
            started = time.perf_counter()
            backend.encode_batch_fast(chunk, add_special_tokens=False)
            seconds += time.perf_counter() - started
            characters += sum(map(len, chunk))
        return {"seconds": seconds, "characters": characters}
    pool: Pool = RayTasks(None, number) if engine == "ray" else Processes(number)
    if number == 1:
        pool = Alone(one_core=True)
    if engine == "ray":
        # Ray starts once a run, whatever the text.
        list(pool.map(_nothing, None, []))
    with tempfile.TemporaryDirectory() as folder, _watched() as peak:
        started, own = time.perf_counter(), time.process_time()
        statistics = build_corpus(
            Path(folder),
            sources=sources,
            evaluation={},
            settings=Corpora(max_length=LENGTH),
            count_tokens=TokenCounter([backend]),
            max_tokens=LENGTH - 2,
            fields=CorpusFields("text", "evaluation"),
            pool=pool,
        )
        seconds, own = time.perf_counter() - started, time.process_time() - own
        pool.close()
        digests = ""
        for name in ("train.arrow", "held_out.arrow", "statistics.json"):
            # A piece at a time: memory is being watched.
            with (Path(folder) / name).open("rb") as handle:
                digests += hashlib.file_digest(handle, "sha256").hexdigest()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    splits = statistics["splits"].values()
    return {
        "seconds": seconds,
        "characters": sum(split["characters"] for split in splits),
        "driver_seconds": own,
        "worker_seconds": children.ru_utime + children.ru_stime,
        "peak_mebibytes": peak[0],
        "bytes": hashlib.sha256(digests.encode()).hexdigest(),
    }


def _nothing(shared: object) -> bytes:
    return b""


@contextmanager
def _watched() -> Iterator[list[int]]:
    """A list whose entry is the peak of the memory of this process and its children that no other shares."""
    peak, done, me = [0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(0.2):
            used = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    used += process.memory_full_info().uss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], used >> 20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])))
