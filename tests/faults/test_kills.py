"""SIGKILL within a stage, then the same command: the run ends with the bytes of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml


def command(folder: Path, values: dict) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values | {"output": str(folder / "run")}), "utf-8")
    return [sys.executable, "-m", "polydistill", "train", str(folder / "recipe.yaml")]


def content(run: Path) -> dict[str, bytes]:
    """The stores' and the student's bytes."""
    files = [*run.glob("store/**/*"), *(run / "student" / "final").rglob("*")]
    # The student's stamp names nothing that may differ.
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize(
    ("moment", "pattern", "values"),
    [
        (
            "scoring",
            "store/**/shard-00001.arrow",
            {"scoring": {"shard_examples": 16, "precision": "float32", "batch_tokens": 256}},
        ),
        pytest.param(
            "training",
            "student/checkpoints/checkpoint-*/model.safetensors",
            {},
            # Kills at random moments of a training are in tests/faults/test_random_kills.py.
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_killed_run_goes_on(tmp_path, recipe_values, moment, pattern, values) -> None:
    training = recipe_values["training"] | {"max_steps": 40, "save_steps": 6, "logging_steps": 5}
    values = recipe_values | {"training": training} | values
    subprocess.run(command(tmp_path / "calm", values), check=True, capture_output=True)
    arguments = command(tmp_path / "killed", values)
    run = tmp_path / "killed" / "run"
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(run.glob(pattern)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"
    assert not (run / "student" / "final").exists()
    again = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    if moment == "training" and (run / "student/checkpoints/checkpoint-6/complete.json").exists():
        assert "resuming at step" in again.stdout
    calm, killed = content(tmp_path / "calm" / "run"), content(run)
    assert calm.keys() == killed.keys()
    assert [name for name in calm if calm[name] != killed[name]] == []


def test_a_killed_adaptation_of_a_teacher_goes_on(tmp_path, extract_values) -> None:
    """The teacher's own training resumes from its checkpoint, and the student has the same bytes."""
    values = extract_values | {"adapt": {"max_steps": 40, "save_steps": 6, "learning_rate": 1e-3}}
    subprocess.run(command(tmp_path / "calm", values), check=True, capture_output=True)
    arguments = command(tmp_path / "killed", values)
    run = tmp_path / "killed" / "run"
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        first = run / "teacher" / "checkpoints" / "checkpoint-6" / "complete.json"
        while not first.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"
    assert not (run / "teacher" / "adapted").exists()
    again = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "resuming at step" in again.stdout
    calm, killed = content(tmp_path / "calm" / "run"), content(run)
    assert calm.keys() == killed.keys()
    assert "student/final/model.safetensors" in calm
    assert [name for name in calm if calm[name] != killed[name]] == []


def test_a_checkpoint_without_its_last_file_is_passed_over(tmp_path) -> None:
    from polydistill.training.checkpoints import last_checkpoint, mark_complete

    for step in (5, 10, 15, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights" * step)
        if step != 20:
            mark_complete(folder)
    damaged = tmp_path / "checkpoint-15" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"X")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
