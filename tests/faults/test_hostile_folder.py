"""A run's folder on a disk that fills up, with files that vanish, or wanted by two commands at once.

Each time the run resumes or reports exactly what is wrong, and ends with the bytes of an undisturbed run.
`make test-faults` tries more (POLYDISTILL_FILLS, POLYDISTILL_REMOVALS).
"""

import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from tests.faults.harness import Bed, content, recipes

from polydistill.errors import UserError
from polydistill.tools.verify import verify_run

FILLS = int(os.environ.get("POLYDISTILL_FILLS", "10"))
REMOVALS = int(os.environ.get("POLYDISTILL_REMOVALS", "20"))
DISK = 64 << 20
TRACEBACK = "Traceback (most recent call last)"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk is mounted by root only: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def bed(tmp_path, teachers, multilingual_teacher) -> Bed:
    return Bed(tmp_path, recipes(tmp_path, teachers, multilingual_teacher))


def fill(disk: Path) -> Path:
    """A file that takes all the free space."""
    filler = disk / "filler"
    for size in (1 << 20, 1 << 12):
        with suppress(OSError), filler.open("ab", buffering=0) as handle:
            while True:
                handle.write(bytes(size))
    return filler


def verified(folder: Path) -> str:
    """The output of `polydistill verify`."""
    try:
        return "\n".join(verify_run(folder))
    except UserError as error:
        return str(error)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_moment_loses_nothing(bed, small_disk, capsys) -> None:
    draw, outcomes = random.Random(1), Counter()
    for kind in bed.values:
        bed.calm_run(kind)
    for number in range(FILLS):
        kind = list(bed.values)[number % len(bed.values)]
        folder = small_disk / f"filled-{number}"
        process = bed.start(kind, folder)
        process.join(draw.uniform(0.0, bed.seconds[kind]))
        filler = fill(small_disk)
        process.join(600)
        said = bed.said(folder)
        assert TRACEBACK not in said, said[-3000:]
        if process.exitcode:
            assert re.search(r"no space left on the device|MiB are free", said), said[-3000:]
            assert re.search(r"rerun|same command", said), said[-3000:]
            outcomes[f"{kind} stopped and said so"] += 1
        else:
            outcomes["over before"] += 1
        filler.unlink()
        bed.finish(kind, folder)
        bed.check_content(kind, folder)
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{FILLS} full disks: {dict(outcomes)}")
    assert sum(outcomes.values()) > outcomes["over before"]


@pytest.mark.slow
def test_a_file_that_vanished_is_made_anew_or_named(bed, tmp_path, capsys) -> None:
    draw, outcomes = random.Random(2), Counter()
    kept = {kind: bed.calm_run(kind, keep=True) for kind in bed.values}
    for number in range(REMOVALS):
        kind = list(bed.values)[number % len(bed.values)]
        folder = tmp_path / f"robbed-{number}"
        shutil.copytree(kept[kind], folder)
        files = [folder / name for name in content(folder)]
        folders: dict[Path, list[Path]] = {}
        for path in files:
            folders.setdefault(path.parent, []).append(path)
        victim = draw.choice(draw.choice(list(folders.values())))
        victim.unlink()
        for _ in range(3):
            process = bed.start(kind, folder)
            process.join(600)
            said = bed.said(folder)
            assert TRACEBACK not in said, said[-3000:]
            if process.exitcode == 0:
                break
            # As the message says: without that folder, it is made again.
            named = re.search(
                r"polydistill: (\S+): is damaged: its file (\S+) is gone", said.replace("\n", " ")
            )
            assert named, f"{victim}: {said[-3000:]}"
            assert victim == Path(named[1]) / named[2]
            shutil.rmtree(named[1])
            bed.output(folder).unlink()
            outcomes["named"] += 1
        else:
            pytest.fail(f"{victim}: {said[-3000:]}")
        if not victim.is_file():
            # Nothing depends on it any more; `verify` checks everything.
            assert victim.name in verified(folder), f"{victim} is not missed"
            victim.write_bytes(bed.calm[kind][str(victim.relative_to(folder))])
            outcomes["needed no more, and named by verify"] += 1
        bed.check_content(kind, folder)
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{REMOVALS} files removed, the others of them made anew: {dict(outcomes)}")


@pytest.mark.slow
def test_a_second_command_on_one_folder_is_told_who_holds_it(bed, tmp_path) -> None:
    kind, folder = "merge", tmp_path / "both"
    bed.calm_run(kind)
    first = bed.start(kind, folder)
    deadline = time.monotonic() + 60
    while not (folder / ".lock").is_file() or not (folder / ".lock").read_text("utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = bed.start(kind, folder)
    second.join(60)
    assert second.exitcode == 2
    assert f"in use by process {first.pid}" in bed.said(folder)
    first.join(600)
    assert first.exitcode == 0
    bed.check_content(kind, folder)
