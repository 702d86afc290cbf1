"""A flipped bit anywhere in a run's folder is reported, or changes nothing, in every kind of file.

`make test-faults` tries more (FLIPS).
"""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from tests.conftest import half_scored, merge_of_one

from polydistill.artefacts import check_artefact, forget_checksums
from polydistill.config.load import parse_recipe
from polydistill.errors import UserError
from polydistill.pipelines.run import run_recipe
from polydistill.tools.verify import verify_run

# Flips in each of the states below.
FLIPS = int(os.environ.get("POLYDISTILL_FLIPS", "4"))
# Records that no artefact depends on: logs, times, the lock on the folder.
IGNORED = ("run.log", ".lock", "tfevents")


def run(values: dict) -> Path:
    # A restored file has its old size and, on a coarse clock, its old time.
    forget_checksums()
    return run_recipe(parse_recipe(values), show=lambda line: None)


def results(folder: Path) -> dict[str, bytes]:
    """A run's results: the student and its evaluation."""
    parts = [*(folder / "student" / "final").rglob("*"), *(folder / "evaluation").rglob("*")]
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in parts if p.is_file() and p.name != "stamp.json"
    }


def flip(path: Path, draw: random.Random) -> str:
    data = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit}"


def chosen_files(folder: Path, number: int, draw: random.Random) -> list[Path]:
    """Files of all kinds by turns: large files must not get all flips. A kind is a folder and a suffix."""
    kinds: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size and not any(name in path.name for name in IGNORED):
            kinds.setdefault((path.parent, path.suffix), []).append(path)
    order = list(kinds.values())
    draw.shuffle(order)
    return [draw.choice(order[index % len(order)]) for index in range(number)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teachers) -> tuple[dict, Path]:
    """A finished merge of one teacher, and its recipe."""
    root = tmp_path_factory.mktemp("flips")
    values = merge_of_one(root, teachers["ru"], lines=300, steps=6, shard_examples=64)
    folder = run(values)
    # Kept as it is: this test restores runs from it.
    shutil.copytree(folder, root / "kept")
    return values, root / "kept"


def interrupted(folder: Path, state: str) -> None:
    """Remove what a run that was stopped in this state had not made yet."""
    if state in ("training", "scoring"):
        for name in ("student/final", "evaluation", "report"):
            shutil.rmtree(folder / name)
        (folder / "student" / "log.json").unlink()
    if state == "scoring":
        shutil.rmtree(folder / "student")
        half_scored(folder / "store" / "ru" / "ru")


@pytest.mark.parametrize("state", ["finished", "training", "scoring"])
def test_a_flipped_bit_is_named_or_harmless(finished, state, capsys) -> None:
    values, kept = finished
    folder, wanted = Path(values["output"]), results(kept)
    draw = random.Random(len(state))
    interrupted_copy = kept.with_name(f"kept-{state}")
    shutil.copytree(kept, interrupted_copy)
    interrupted(interrupted_copy, state)
    outcomes: Counter[str] = Counter()
    for path in chosen_files(interrupted_copy, FLIPS, draw):
        relative = path.relative_to(interrupted_copy)
        shutil.rmtree(folder)
        shutil.copytree(interrupted_copy, folder)
        place = flip(folder / relative, draw)
        try:
            run(values)
        except UserError as error:
            outcomes["named"] += 1
            said = str(error)
        else:
            said = ""
        if said:
            assert str(folder) in said, f"{relative}, {place}: {said}"
            # If the flip changed a setting of the folder's recipe, the message names that setting.
            names = (relative.name, str(relative.parent) + ":", "belongs to a recipe with other settings")
            assert any(name in said for name in names[: 3 if relative.name == "recipe.yaml" else 2]), (
                f"{relative}: {said}"
            )
        else:
            outcomes["harmless"] += 1
            actual = results(folder)
            assert actual.keys() == wanted.keys(), f"{relative}, {place}"
            different = [name for name in wanted if actual[name] != wanted[name] and "README.md" not in name]
            assert not different, f"{relative}, {place}: {different}"
    assert sum(outcomes.values()) == FLIPS
    with capsys.disabled():
        print(f"\n{state}: {FLIPS} flips, {dict(outcomes)}")


def test_checkpoints_of_other_settings_are_not_gone_on_from(finished) -> None:
    values, kept = finished
    folder = Path(values["output"])
    for learning_rate, goes_on in ((None, True), (1e-3, False)):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        interrupted(folder, "training")
        changed = values["training"] | ({} if learning_rate is None else {"learning_rate": learning_rate})
        lines: list[str] = []
        recipe = parse_recipe(values | {"training": changed})
        run_recipe(recipe, update=True, until="train", show=lines.append)
        assert any("resuming at step" in line for line in lines) == goes_on


def test_every_file_that_a_run_makes_is_sealed_and_verify_says_so(finished) -> None:
    values, kept = finished
    folder = Path(values["output"])
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    lines = verify_run(folder)
    # Five artefacts, the checkpoints, and the run's records.
    assert len(lines) == 7
    assert all("whole" in line for line in lines)
    weights = folder / "student" / "final" / "model.safetensors"
    flip(weights, random.Random(1))
    with pytest.raises(UserError, match=r"student/final: is damaged: its file model.safetensors is not what"):
        check_artefact(folder / "student" / "final")
    weights.unlink()
    with pytest.raises(UserError, match=r"its file model.safetensors is gone"):
        run(values)
    # As the message says: without the folder, it is made again.
    shutil.rmtree(folder / "student" / "final")
    run(values)
    assert results(folder) == results(kept)
    # The log is beside the model and knows its own checksum.
    log = folder / "student" / "log.json"
    whole = log.read_text("utf-8")
    log.write_text(whole.replace('"step": 2', '"step": 3', 1), "utf-8")
    with pytest.raises(UserError, match=r"log.json: is damaged: its checksum does not match"):
        run(values)
    log.write_text(whole, "utf-8")
    # People may edit the card.
    with (folder / "student" / "final" / "README.md").open("a") as card:
        card.write("More.\n")
    assert verify_run(folder) == lines
