"""Training on several processes, started by torchrun and accelerate, learns the same as on one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.end_to_end.test_merge import polydistill, write_recipe
from tests.end_to_end.test_pretrain import pretrain_recipe

from polydistill.errors import RecipeError
from polydistill.pipelines.run import run_recipe

TORCHRUN = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"
# Without `--num_machines`, `--mixed_precision` and so on, accelerate warns that it has no settings file.
ACCELERATE = (
    "-m",
    "accelerate.commands.launch",
    "--cpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--num_cpu_threads_per_process",
    "1",
    "--main_process_port",
    "0",
    "-m",
)


def launched(launcher: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *launcher, "polydistill", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        check=False,
    )


def losses(run: Path) -> list[list[float]]:
    """[L, 1 + languages] the loss and each language's own, at every log entry."""
    log = json.loads((run / "student" / "log.json").read_text("utf-8"))["log"]
    return [
        [value for name, value in sorted(entry.items()) if name.startswith(("loss", "mlm_loss", "kd_loss"))]
        for entry in log
        if "mlm_loss" in entry
    ]


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "student" / "final" / "model.safetensors")


def assert_same(run: Path, other: Path) -> None:
    """Equal up to the order of floating-point sums."""
    np.testing.assert_allclose(losses(run), losses(other), atol=2e-4)
    ours, theirs = weights(run), weights(other)
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours) < 2e-4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, texts):
    """Writes the recipe of a pre-training that is deterministic except for the order of sums."""
    folder = tmp_path_factory.mktemp("processes")

    def write(name: str, **training) -> tuple[str, Path]:
        values = pretrain_recipe(texts, folder / name)
        # Where a gradient is nearly zero, Adam turns a difference in the last bit into a whole step.
        values["training"] |= {
            "max_steps": 12,
            "logging_steps": 2,
            "save_steps": 4,
            "report_to": [],
            "optim": "sgd",
            "learning_rate": 0.5,
        } | training
        (folder / f"recipe-{name}").mkdir(exist_ok=True)
        return write_recipe(folder / f"recipe-{name}", values), folder / name

    return write


@pytest.fixture(scope="module")
def alone(recipe):
    path, run = recipe("alone")
    done = polydistill("train", path)
    assert done.returncode == 0, done.stderr
    return run


def test_two_processes_learn_what_one_learns(recipe, alone) -> None:
    path, run = recipe("two")
    done = launched(TORCHRUN, "train", path)
    assert done.returncode == 0, done.stderr
    # Only the first process reports progress.
    assert done.stdout.count("tokenizer: WordPiece of") == 1
    assert done.stdout.count("step 12/12") == 1
    assert_same(run, alone)
    # Any number of processes finds the finished model.
    before = (run / "student" / "final" / "model.safetensors").stat().st_mtime_ns
    assert polydistill("train", path).returncode == 0
    assert (run / "student" / "final" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_processes(recipe, alone) -> None:
    """Killed at step 4 with one process, it resumes with two, and after step 8 with one again."""
    path, run = recipe("resumed")
    script = (
        "import os, sys\nfrom polydistill.training import nonfinite as watched\n"
        "mark = watched.mark_complete\n"
        "def stop(checkpoint):\n    mark(checkpoint)\n"
        "    if checkpoint.name == sys.argv[3]:\n        os.kill(os.getpid(), 9)\n"
        "watched.mark_complete = stop\n"
        "from polydistill.pipelines import run_recipe\nrun_recipe(sys.argv[1], until='train')\n"
    )
    program = Path(path).parent / "stop.py"
    program.write_text(script, "utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for launcher, last in (((), "checkpoint-4"), (TORCHRUN[:-1], "checkpoint-8")):
        stopped = subprocess.run(
            [sys.executable, *launcher, str(program), path, "train", last],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert stopped.returncode != 0
        assert (run / "student" / "checkpoints" / last / "complete.json").is_file(), stopped.stderr
    done = polydistill("train", path)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 8" in done.stdout
    assert_same(run, alone)


@pytest.mark.slow
def test_two_processes_take_a_reused_model_together(recipe, alone) -> None:
    """A late process must not find the copy before the others wait for it: all end, none keeps waiting."""
    path, run = recipe("copied")
    program = Path(path).parent / "late.py"
    program.write_text(
        "import os, sys, time\nfrom polydistill.pipelines import run_recipe\nfrom "
        "polydistill.pipelines.stages import training\n"
        "real = training.is_current\n"
        "def late(folder, inputs):\n"
        "    if os.environ['RANK'] == '1' and folder.name == 'final':\n        time.sleep(3)\n"
        "    return real(folder, inputs)\n"
        "training.is_current = late\n"
        "run_recipe(sys.argv[1], [f'reuse=[{sys.argv[2]}]'], until='train')\n",
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, *TORCHRUN[:-1], str(program), path, str(alone)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"student: taken from {alone}" in done.stdout
    name = "student/final/model.safetensors"
    assert (run / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.slow
def test_accelerate_and_accumulation(recipe, alone) -> None:
    """Two processes of two micro-batches each, started by accelerate, equal one batch of one process."""
    path, run = recipe("accelerate", per_device_train_batch_size=4, gradient_accumulation_steps=4)
    done = launched(ACCELERATE, "train", path)
    assert done.returncode == 0, done.stderr
    assert_same(run, alone)


@pytest.mark.slow
def test_a_merge_on_two_processes_evaluates_once(tmp_path, recipe_values) -> None:
    values = recipe_values | {"training": recipe_values["training"] | {"max_steps": 4}}
    done = launched(TORCHRUN, "run", write_recipe(tmp_path, values))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report:") == 2
    assert (Path(values["output"]) / "report" / "index.html").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"training": {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 3}},
            "5 x 3 examples do not divide by 2 processes",
        ),
        ({"recipe": "grid"}, "runs in one process, and 2 were started"),
    ],
)
def test_what_several_processes_cannot_do_is_said(tmp_path, texts, monkeypatch, values, message) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = pretrain_recipe(texts, tmp_path / "run")
    if values.get("recipe") == "grid":
        del recipe["name"], recipe["output"]
        recipe = values | {
            "name": "all",
            "output": str(tmp_path / "run"),
            "base": recipe,
            "runs": {"one": {}},
        }
    else:
        recipe["training"] |= values["training"]
    with pytest.raises(RecipeError, match=message):
        run_recipe(write_recipe(tmp_path, recipe), until="train" if "training" in values else "report")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_adapt_a_teacher_and_narrow_its_student_as_one_does(extract_values, tmp_path) -> None:
    """Both trainings are shared; the parts are chosen by the first process."""
    plain = {"optim": "sgd", "learning_rate": 0.1, "report_to": []}
    folder = tmp_path / "teacher"
    shutil.copytree(extract_values["teacher"], folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config | still), "utf-8")
    runs = []
    for name, launcher in (("one", ()), ("two", TORCHRUN)):
        (tmp_path / f"recipe-{name}").mkdir()
        values = extract_values | {
            "teacher": str(folder),
            "output": str(tmp_path / name),
            "training": extract_values["training"] | plain,
            "adapt": {"learning_rate": 1.0},
            "student": {"hidden_size": 16, "intermediate_size": 24},
        }
        path = write_recipe(tmp_path / f"recipe-{name}", values)
        done = launched(launcher or ("-m",), "train", path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("adapting the teacher") == 1
        assert done.stdout.count("importance of the teacher's parts") == 1
        runs.append(tmp_path / name)
    assert_same(*runs)
    adapted = [load_file(run / "teacher" / "adapted" / "model.safetensors") for run in runs]
    assert max(float(np.abs(adapted[0][name] - adapted[1][name]).max()) for name in adapted[0]) < 2e-4
    before = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    assert float(np.abs(adapted[0][name] - before[name]).max()) > 1e-3
