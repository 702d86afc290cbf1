"""Shared by the fault tests: small recipes of every kind, started as processes that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tests import finetuning
from tests.conftest import bundled_lines

from polydistill.cli import main
from polydistill.config.load import parse_recipe
from polydistill.errors import UserError
from polydistill.pipelines.run import run_recipe

# What a process prints when its command begins: an interrupt before that is Python's own.
STARTED = "started"
# Files that hold times.
NOT_COMPARED = (
    "run.log",
    ".progress.json",
    ".lock",
    "timing.json",
    "environment.json",
    "log.json",
    "artefacts.json",
    "recipe.yaml",
)
TRAINING = {
    "max_steps": 12,
    "per_device_train_batch_size": 8,
    "logging_steps": 4,
    "save_steps": 4,
    "bf16": False,
}
MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
CORPORA = {"max_length": 32, "block_lines": 16, "held_out_share": 0.1}
EVALUATION = {"max_examples": 20, "precision": "float32"}


def command(recipe: str, verb: str, output: str) -> None:
    """`polydistill VERB RECIPE` in a process that has already imported everything; it prints to a file."""
    with Path(output).open("a") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    sys.argv = ["polydistill", verb, recipe]
    print(STARTED, flush=True)
    main()


def recipes(root: Path, teachers: dict, multilingual: Path) -> dict[str, dict]:
    """A recipe of each kind that has stages; each takes seconds."""
    texts = {}
    for language in ("en", "ru"):
        texts[language] = root / f"{language}.txt"
        texts[language].write_text("\n".join(bundled_lines(language, 400)) + "\n", "utf-8")
    common = {"corpora": CORPORA, "training": TRAINING}
    both = {language: {"text": str(path)} for language, path in texts.items()}
    scoring = {"shard_examples": 32, "precision": "float32", "batch_tokens": 1024}
    model = {"model_type": "modernbert", "config": MODEL}
    return {
        "merge": common
        | {
            "recipe": "merge",
            "teachers": {name: str(teachers[name]) for name in ("en", "ru")},
            "languages": {name: both[name] | {"teachers": [name]} for name in both},
            "scoring": scoring,
            "student": {"config": MODEL},
            "evaluation": EVALUATION | {"num_samples": 2},
        },
        "extract": common
        | {
            "recipe": "extract",
            "teacher": str(multilingual),
            "language": "ru",
            "text": str(texts["ru"]),
            "cost": {"rounds": 0},
            "evaluation": EVALUATION | {"num_samples": 2},
            "trim": {"when": "after"},
            "adapt": {"max_steps": 4},
            "student": {"intermediate_size": 24},
        },
        "balance": common
        | {
            "recipe": "balance",
            "languages": both,
            "tokenizer": {"size": 400},
            "model": model,
            "evaluation": EVALUATION,
            "scoring": scoring,
            "teachers": {"epochs": None, "evaluations": 3, "patience": 1},
            "students": {
                "ours": {"truncate": 20_000, "predictions": "stored", "epochs": None},
                "HL": {"labels": "gold", "truncate": "none", "epochs": None},
            },
        },
        "pretrain": common
        | {
            "recipe": "pretrain",
            "languages": both,
            "tokenizer": {"size": 400},
            "model": model,
            "evaluation": EVALUATION,
        },
        "embed": {
            "recipe": "embed",
            "teacher": str(multilingual),
            "student": {"model": str(teachers["en"]), "projection": True},
            "languages": both,
            "sentences": {"max_length": 32, "held_out_share": 0.1},
            "vectors": {"precision": "float32"},
            "training": TRAINING,
        },
        "finetune": _finetune(root, teachers),
    }


def _finetune(root: Path, teachers: dict) -> dict:
    return {
        "recipe": "finetune",
        "models": {name: str(teachers[name]) for name in ("en", "ru")},
        "num_seeds": 1,
        "tasks": {kind: finetuning.task(root, kind) for kind in ("ner", "qa")},
        "training": finetuning.SMALL,
        "bootstrap_samples": 100,
    }


def content(run: Path) -> dict[str, bytes]:
    """All files of a finished run except records, checkpoints and the page, which hold times."""
    files = {}
    for path in sorted(run.rglob("*")):
        relative = path.relative_to(run)
        if not path.is_file() or path.name in NOT_COMPARED or "checkpoints" in relative.parts:
            continue
        if relative.parts[0] == "report":
            continue
        files[str(relative)] = path.read_bytes()
    return files


class Bed:
    """Starts runs of small recipes as processes, disturbs them, and compares what they end with.

    root    the folder of the runs, which are made in subfolders, and of their recipes and output
    values  kind → recipe
    """

    def __init__(self, root: Path, values: dict[str, dict]) -> None:
        self.root, self.values = root, values
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(
            ["polydistill.pipelines", "polydistill.reports", "transformers"]
        )
        self.killed: Counter[str] = Counter()
        self.stages: Counter[str] = Counter()
        self.started: Counter[Path] = Counter()
        self.calm: dict[str, dict[str, bytes]] = {}
        self.seconds: dict[str, float] = {}

    def start(self, kind: str, folder: Path):
        """A process that runs the recipe of a kind in a folder."""
        recipe = self.root / f"{folder.name}.yaml"
        recipe.write_text(yaml.safe_dump(self.values[kind] | {"name": kind, "output": str(folder)}), "utf-8")
        verb = "pretrain" if kind == "pretrain" else "run"
        process = self.processes.Process(target=command, args=(str(recipe), verb, str(self.output(folder))))
        process.start()
        return process

    def output(self, folder: Path) -> Path:
        """The file that the folder's processes print to."""
        return self.root / f"{folder.name}.out"

    def said(self, folder: Path) -> str:
        """The output of the folder's processes."""
        path = self.output(folder)
        return path.read_text("utf-8") if path.is_file() else ""

    def finish(self, kind: str, folder: Path) -> float:
        """Run a recipe to its end; returns the seconds."""
        started = time.monotonic()
        process = self.start(kind, folder)
        process.join(600)
        assert process.exitcode == 0, self.said(folder)[-3000:]
        return time.monotonic() - started

    def calm_run(self, kind: str, *, keep: bool = False) -> Path:
        """Run a recipe undisturbed; record its seconds and its final content."""
        # The first run's seconds include what a process reads only once.
        self.finish(kind, self.root / "warm")
        shutil.rmtree(self.root / "warm")
        folder = self.root / f"calm-{kind}"
        self.seconds[kind] = self.finish(kind, folder)
        self.calm[kind] = content(folder)
        if not keep:
            shutil.rmtree(folder)
        return folder

    def check_content(self, kind: str, folder: Path) -> None:
        """Check that a run ended with the same bytes as the undisturbed one."""
        actual, wanted = content(folder), self.calm[kind]
        assert actual.keys() == wanted.keys(), f"{folder.name}: {actual.keys() ^ wanted.keys()}"
        different = [name for name in actual if actual[name] != wanted[name]]
        assert not different, f"{folder.name}: {different}"

    def kill(self, kind: str, folder: Path, seconds: float, with_signal: signal.Signals) -> bool:
        """Start a run and kill it after a number of seconds; False if it ended before."""
        process = self.start(kind, folder)
        process.join(seconds)
        if process.exitcode is not None:
            assert process.exitcode == 0, self.said(folder)[-3000:]
            return False
        os.kill(process.pid, with_signal)
        process.join(60)
        if process.exitcode == 0:
            # It ended between the check and the signal.
            return False
        said = self.said(folder)
        if said.count(STARTED) > self.started[folder]:
            # 130: the command line reports an interrupt.
            assert process.exitcode in (-with_signal, 130), f"{process.exitcode}: {said[-3000:]}"
        self.started[folder] = said.count(STARTED)
        self.killed[with_signal.name] += 1
        self.stages[f"{kind}: {stage_of(folder)}"] += 1
        return True


def stage_of(folder: Path) -> str:
    """The stage in progress, judged by partial and finished artefacts."""
    half = sorted(folder.rglob("*.partial"))
    if half:
        return half[0].relative_to(folder).parts[0].removesuffix(".partial")
    if list(folder.rglob("checkpoints")) and not (folder / "evaluation").is_dir():
        return "training"
    done = [
        name
        for name in ("corpora", "tokenizer", "store", "student", "students", "evaluation")
        if (folder / name).is_dir()
    ]
    return f"after {done[-1]}" if done else "before anything"


def run(values: dict, until: str = "score") -> Path:
    return run_recipe(parse_recipe(values), until=until, show=lambda line: None)


def expect_refusal(values: dict, *wanted: str, until: str = "score") -> str:
    with pytest.raises(UserError) as caught:
        run(values, until)
    message = str(caught.value)
    for part in (*wanted, "; "):
        assert part in message
    assert caught.value.remedy
    return message


def copy_teacher(teachers: dict, folder: Path) -> Path:
    return Path(shutil.copytree(teachers["ru"], folder))


def only_russian(values: dict, teacher: Path | str) -> dict:
    return values | {"teachers": {"ru": str(teacher)}, "languages": {"ru": values["languages"]["ru"]}}
