"""Preparing text in several processes: the same bytes, whoever is killed and whenever."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.conftest import bundled_lines

ROOT = Path(__file__).parents[2]
KILLS = 20


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    lines = [line for language in ("en", "de", "fr", "ru") for line in bundled_lines(language, 3000)]
    path.write_text("\n".join(lines + lines[:500]))
    return path


def start(text: Path, folder: Path, engine: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.corpora_driver", str(text), str(folder), engine]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def num_parts(folder: Path) -> int:
    return len(list((folder.with_name("corpus.partial") / "parts").glob("*.arrow")))


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    process = start(text, folder, "1")
    assert process.wait() == 0, process.stderr.read()
    found = content(folder)
    assert set(found) == {"train.arrow", "held_out.arrow", "statistics.json", "stamp.json"}
    return found


def test_random_kills_of_the_driver_or_a_worker_change_no_byte(text, whole, tmp_path) -> None:
    """A kill of the driver is followed by a new start, one of a worker by none."""
    draw = random.Random(0)
    folder, kills, ended, parts = tmp_path / "corpus", [], 0, 0
    while len(kills) < KILLS:
        process = start(text, folder, "2")
        running = psutil.Process(process.pid)
        while process.poll() is None:
            # By work that is done, not by time: machines differ.
            wanted = num_parts(folder) + draw.randrange(1, 12)
            while process.poll() is None and num_parts(folder) < wanted:
                time.sleep(0.01)
            try:
                workers = running.children()
            except psutil.NoSuchProcess:
                break
            chosen = draw.choice([None, *workers])
            if process.poll() is not None or len(kills) == KILLS:
                break
            kills.append("driver" if chosen is None else "worker")
            if chosen is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                # Workers end with their driver.
                _, alive = psutil.wait_procs(workers, timeout=10)
                assert alive == []
            else:
                with suppress(psutil.NoSuchProcess):
                    chosen.kill()
        process.wait()
        parts = max(parts, num_parts(folder))
        if process.returncode == 0:
            ended += 1
            assert content(folder) == whole
            for path in sorted(folder.rglob("*"), reverse=True):
                path.unlink()
            folder.rmdir()
        elif process.returncode != -signal.SIGKILL:
            # Its workers were killed three times on one part: the same command resumes.
            said = process.stderr.read()
            assert re.search(r"a worker was lost 3 times on .*a\.txt, lines [\d,]+ to [\d,]+", said), said
    process = start(text, folder, "2")
    assert process.wait() == 0, process.stderr.read()
    assert content(folder) == whole
    assert {"driver", "worker"} <= set(kills)
    assert parts > 0


def test_the_same_bytes_on_ray(text, whole, tmp_path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'polydistill[ray]'")
    process = start(text, tmp_path / "corpus", "ray")
    assert process.wait() == 0, process.stderr.read()
    assert content(tmp_path / "corpus") == whole
