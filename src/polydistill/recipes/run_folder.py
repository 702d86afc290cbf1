"""A run's folder: where its artefacts are, its log, and whose it is."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from polydistill.config import AnyRecipe
from polydistill.errors import RunFolderError
from polydistill.files import is_current, read_json, write_json, write_text

LOG_BYTES = 16 << 20


def _print(line: str) -> None:
    print(line, flush=True)


@dataclass
class Run:
    """An open run.

    path   the run's folder
    reuse  folders of other runs to take artefacts from
    show   where lines for people go, beside run.log
    """

    path: Path
    reuse: list[Path] = field(default_factory=list)
    show: Callable[[str], None] = _print

    def say(self, line: str) -> None:
        """Show a line and write it to run.log with the time."""
        self.show(line)
        log = self.path / "run.log"
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("a", encoding="utf-8") as handle:
            handle.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def find(self, relative: str, inputs: Any) -> Path | None:
        """The folder of an artefact made from just these inputs, here or in a run that may be reused."""
        for root in (self.path, *self.reuse):
            if is_current(root / relative, inputs):
                return root / relative
        return None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and write it to timing.json; a stage that is continued adds up."""
        started = time.perf_counter()
        try:
            yield
        finally:
            path = self.path / "timing.json"
            timing = read_json(path) if path.is_file() else {}
            timing[name] = round(timing.get(name, 0.0) + time.perf_counter() - started, 2)
            write_json(path, timing)


def open_run(recipe: AnyRecipe, *, show: Callable[[str], None] = _print, update: bool = False) -> Run:
    """Make or open a recipe's folder; RunFolderError if it belongs to another recipe.

    update  let the recipe change: the stages that depend on the change are done again
    """
    path = Path(recipe.output or f"runs/{recipe.name}")
    resolved = recipe.model_dump(mode="json")
    existing = path / "recipe.yaml"
    if existing.is_file():
        previous = yaml.safe_load(existing.read_text("utf-8"))
        changed = _differences(previous, resolved)
        if changed and not update:
            shown = "; ".join(f"{key}: {_short(old)} → {_short(new)}" for key, old, new in changed[:4])
            raise RunFolderError(
                "output",
                str(path),
                f"belongs to a recipe with other settings ({shown})",
                "choose another `output` (and `reuse` this one's stores), or pass --update to redo what depends on them",
            )
    elif path.is_dir() and any(entry.name not in (".lock", "run.log") for entry in path.iterdir()):
        raise RunFolderError(
            "output", str(path), "is not empty and not a run's folder", "choose another `output`"
        )
    path.mkdir(parents=True, exist_ok=True)
    write_text(existing, yaml.safe_dump(resolved, allow_unicode=True, sort_keys=False))
    write_json(path / "environment.json", environment())
    return Run(path, [Path(folder) for folder in recipe.reuse], show)


def environment() -> dict[str, Any]:
    """What a run ran on: versions, processor, memory."""
    packages = (
        "polydistill",
        "torch",
        "transformers",
        "tokenizers",
        "datasets",
        "accelerate",
        "numpy",
        "pyarrow",
    )
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "packages": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys(), key=str):
            # Where other runs are does not change what this one is.
            if not (key == "" and name == "reuse"):
                found += _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        return found
    return [] if old == new else [(key, old, new)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
