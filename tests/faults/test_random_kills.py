"""Runs killed at random moments of every stage (SIGKILL, SIGTERM, Ctrl-C) and restarted until they end: the
bytes are those of an undisturbed run. `make test-faults` kills a hundred times (POLYDISTILL_KILLS).
"""

import json
import os
import random
import shutil
import signal

import pytest
from tests.faults.harness import Bed, recipes

KILLS = int(os.environ.get("POLYDISTILL_KILLS", "100"))
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path, teachers, multilingual_teacher, capsys) -> None:
    bed = Bed(tmp_path, recipes(tmp_path, teachers, multilingual_teacher))
    draw = random.Random(int(os.environ.get("POLYDISTILL_SEED", "0")))
    for kind in bed.values:
        bed.calm_run(kind)
    ended = 0
    while sum(bed.killed.values()) < KILLS:
        kind = list(bed.values)[ended % len(bed.values)]
        folder = tmp_path / f"killed-{ended}"
        for _ in range(8):
            moment, with_signal = draw.uniform(0.0, 0.7 * bed.seconds[kind]), draw.choice(SIGNALS)
            if not bed.kill(kind, folder, moment, with_signal):
                break
        else:
            bed.finish(kind, folder)
        bed.check_content(kind, folder)
        shutil.rmtree(folder)
        ended += 1
    with capsys.disabled():
        print(
            f"\n{sum(bed.killed.values())} kills {dict(bed.killed)}, {ended} runs ended whole; calm seconds "
            f"{json.dumps({kind: round(value, 1) for kind, value in bed.seconds.items()})}"
        )
        print("\n".join(f"  {number:3} {stage}" for stage, number in sorted(bed.stages.items())))
    assert len({stage.partition(":")[0] for stage in bed.stages}) == len(bed.values)
