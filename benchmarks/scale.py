"""A corpus that grows: characters a second and peak memory of the corpora stage at 1, 4 and 16 times the text.

Each size runs in a fresh process. Memory is anonymous memory (RssAnon), sampled: pages of mapped files, which the
kernel takes back when it wants, are not the stage's.
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
from importlib.resources import files
from pathlib import Path

BASE_CHARACTERS = 2_000_000


def run(base: str = str(BASE_CHARACTERS), *sizes: str) -> dict[str, object]:
    """Build a corpus of base × size characters for each size, 1, 4 and 16 unless said."""
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes or ("1", "4", "16"):
            text = Path(folder) / "text.txt"
            characters = write_text(text, int(base) * int(size))
            command = [
                sys.executable,
                "-m",
                "benchmarks.scale",
                str(text),
                str(Path(folder) / f"corpus-{size}"),
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
            )  # fmt: skip
            result = json.loads(done.stdout.strip().splitlines()[-1])
            measured[f"{size} x"] = {
                "characters": characters,
                "characters_per_second": round(characters / result["seconds"]),
                "peak_anonymous_mebibytes": result["peak_mebibytes"],
                "before_mebibytes": result["before_mebibytes"],
            }
    return {"corpora": measured}


def write_text(path: Path, characters: int) -> int:
    """Real lines of the demo's text, their words in a new order each time round, so that none is a repeat."""
    source = lzma.decompress((files("polydistill") / "demo_data" / "de.txt.xz").read_bytes()).decode("utf-8")
    lines = [line.split() for line in source.splitlines() if line.strip()]
    draw = random.Random(0)
    written = 0
    with path.open("w", encoding="utf-8") as handle:
        while written < characters:
            for words in lines:
                draw.shuffle(words)
                # A number makes short lines differ too.
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


def build(text: str, folder: str) -> None:
    """Build one corpus in this process and print its time and memory."""
    from functools import partial

    from polydistill.config.models import Corpora, Source
    from polydistill.corpora import build_corpus
    from polydistill.tokenization import count_tokens, train_wordpiece

    with Path(text).open(encoding="utf-8") as handle:
        head = handle.readlines(1_000_000)
    tokenizer = train_wordpiece(lambda: head, size=4000, lowercase=True, strip_accents=None)
    peak = before = anonymous_mebibytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, anonymous_mebibytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    Path(folder).mkdir()
    started = time.perf_counter()
    build_corpus(
        Path(folder), sources=[Source(path=text)], evaluation={}, settings=Corpora(max_length=64),
        count_tokens=partial(count_tokens, [tokenizer]), max_tokens=62, field="languages.xx",
    )  # fmt: skip
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "peak_mebibytes": peak, "before_mebibytes": before}))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    build(*sys.argv[1:])
