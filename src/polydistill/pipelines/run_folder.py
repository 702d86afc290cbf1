"""A run's folder: its artefacts, its log, and the recipe that it belongs to."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import psutil
import torch
import yaml

from polydistill.artefacts import (
    ARTEFACTS,
    PARTIAL,
    STAMP,
    artefact,
    copy_artefact,
    is_current,
    partial_folder,
)
from polydistill.config.load import parse_recipe
from polydistill.config.paths import data_root, without_root
from polydistill.config.shared import MODEL_TYPE, RunRecipe
from polydistill.config.yaml_text import read_resolved
from polydistill.disk import (
    Json,
    explain_disk_errors,
    fingerprint,
    lock,
    open_own,
    read_record,
    refuse_links,
    require_space,
    write_json,
    write_text,
)
from polydistill.errors import DiskError, RecipeError, RunFolderError
from polydistill.processes import leads, wait_for_all
from polydistill.remote import RemoteRun, is_url
from polydistill.reports.progress import PROGRESS, Meter, State, Watch
from polydistill.reports.records import ENVIRONMENT, TIMING, heal_records, is_environment, is_seconds

LOG_BYTES = 16 << 20
# Settings of where corpora and stores are computed and losses are sent, also within the recipes of a grid.
WHERE = (
    "corpora.engine",
    "corpora.workers",
    "corpora.address",
    "scoring.engine",
    "scoring.ray",
    "training.report_to",
    "training.run_name",
    "training.project",
)


def _print(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True)
class Artefact:
    """A complete artefact: its folder, and what it was made from."""

    path: Path
    inputs: object

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of what it was made from."""
        return fingerprint(self.inputs)


def fingerprints(artefacts: Mapping[str, Artefact]) -> dict[str, str]:
    """Name → fingerprint."""
    return {name: artefact.fingerprint for name, artefact in artefacts.items()}


@dataclass
class Run:
    """An open run. Of several processes only the first writes; in the others these methods write nothing.

    path      the run's folder
    reuse     folders of other runs to take artefacts from
    show      takes each line of progress, which run.log records too
    resolved  every setting of the recipe
    update    whether the recipe of an existing folder may change
    watch     takes each change of the run's position
    remotes   runs on storage to fetch artefacts from
    """

    path: Path
    reuse: list[Path] = field(default_factory=list)
    show: Callable[[str], None] = _print
    resolved: Json = field(default_factory=dict)
    update: bool = False
    watch: Watch | None = None
    remotes: list[RemoteRun] = field(default_factory=list)

    @cached_property
    def meter(self) -> Meter:
        """How far the run is; of several processes, the first one's is kept."""
        return Meter(self.path, self.watch)

    def count(
        self, what: str, done: int, total: int, unit: str, *, left: float | None = None, note: str = ""
    ) -> None:
        """`done` of `total` units of the current stage are finished, see `Meter.count`."""
        if leads():
            self.meter.count(what, done, total, unit, left=left, note=note)

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Lock the folder, and check that it belongs to this recipe before anything is written."""
        if not leads():
            wait_for_all()
            yield
            return
        with explain_disk_errors(self.path), lock(self.path):
            _check_owner(self.path, self.resolved, update=self.update)
            refuse_links(self.path)
            wait_for_all()
            yield

    @contextmanager
    def underway(self, stages: Sequence[str]) -> Iterator[None]:
        """Keep the position of a claimed run up to date until it ends, however it ends.

        stages  of its kind, in order
        """
        if not leads():
            yield
            return
        self.meter.begin(stages)
        state: State = "failed"
        try:
            yield
            state = "finished"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            self.meter.end(state)

    def enter(self, stage: str) -> None:
        """A stage of the run begins."""
        if leads():
            self.meter.enter(stage)

    def record_recipe(self) -> None:
        """Write recipe.yaml and the environment; called once the recipe has passed all checks."""
        if not leads():
            return
        write_text(
            self.path / "recipe.yaml", yaml.safe_dump(self.resolved, allow_unicode=True, sort_keys=False)
        )
        heal_records(self.path)
        if not is_environment(read_record(self.path / ENVIRONMENT)):
            write_json(self.path / ENVIRONMENT, environment())

    def use(self, relative: str, folder: Path) -> Path:
        """Record where an artefact of this run is: it may be in another run's folder."""
        path = self.path / ARTEFACTS
        known = {name: place_of for name, place_of in read_record(path).items() if isinstance(place_of, str)}
        own = folder.resolve().is_relative_to(self.path.resolve())
        # Relative within this folder, which may be moved.
        place = str(folder.resolve().relative_to(self.path.resolve()) if own else folder.resolve())
        if leads() and known.get(relative) != place:
            write_json(path, known | {relative: place})
        return folder

    def say(self, line: str) -> None:
        """Show a line and write it to run.log with the time."""
        if not leads():
            return
        self.show(line)
        log = self.path / "run.log"
        if log.is_file() and log.lstat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with open_own(log) as handle:
            handle.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def make(
        self,
        name: str,
        inputs: object,
        write: Callable[[Path], None],
        *,
        reuse: bool | Literal["copy"] = False,
        stage: str | None = None,
        needs_bytes: Callable[[], float] | None = None,
        keep_partial: bool = False,
    ) -> Artefact:
        """Find the artefact that was made from exactly these inputs, or make it.

        name          its folder within the run's
        write         writes its content into a folder
        reuse         look in the runs of `self.reuse` too, and record where it is, or copy it (what others
                      look for in the run's own folder)
        stage         its name in timing.json and in messages; by default `name`
        needs_bytes   estimates its size on disk; called only if it has to be made
        keep_partial  `write` continues what an interrupted run left
        Raises DiskError if the disk lacks space, RunFolderError for a damaged artefact.
        """
        own = self.path / name
        existing = self.find(name, inputs) if reuse else own if is_current(own, inputs) else None
        if existing is not None and existing != own and reuse == "copy":
            with artefact(own, inputs) as folder:
                copy_artefact(existing, folder)
            existing = own
        if existing is None:
            existing, stage = own, stage or name
            if needs_bytes is not None:
                require_space(partial_folder(own), needs_bytes(), stage=stage)
            with self.stage(stage), artefact(own, inputs, keep_partial=keep_partial) as folder:
                write(folder)
        return Artefact(self.use(name, existing) if reuse is True else existing, inputs)

    def find(self, relative: str, inputs: object) -> Path | None:
        """The folder of an artefact made from exactly these inputs: here, or in a run of `self.reuse`; one
        on storage is fetched.
        """
        for root in (self.path, *self.reuse):
            if is_current(root / relative, inputs):
                return root / relative
        for remote in self.remotes if leads() else []:
            if remote.fetch(relative, inputs, self.path / relative):
                self.say(f"{relative}: fetched from {remote.url}")
                return self.path / relative
        return None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and write it to timing.json; a resumed stage adds to its time."""
        if not leads():
            yield
            return
        started = time.perf_counter()
        try:
            yield
        finally:
            path = self.path / TIMING
            # The stage itself reports a full disk; an error of this record must not replace that.
            with suppress(OSError, DiskError):
                timing = {key: seconds for key, seconds in read_record(path).items() if is_seconds(seconds)}
                timing[name] = round(timing.get(name, 0.0) + time.perf_counter() - started, 2)
                write_json(path, timing)


def open_run(
    recipe: RunRecipe,
    *,
    show: Callable[[str], None] = _print,
    update: bool = False,
    watch: Watch | None = None,
) -> Run:
    """The run of a recipe; nothing is written before it is claimed.

    update  let the recipe of an existing folder change: what depends on the change is redone
    watch   takes each change of the run's position
    """
    folders = [Path(place) for place in recipe.reuse if not is_url(place)]
    remotes = [
        RemoteRun(place, f"reuse[{index}]") for index, place in enumerate(recipe.reuse) if is_url(place)
    ]
    return Run(recipe.folder, folders, show, recipe.model_dump(mode="json"), update, watch, remotes)


# Files that a run may leave if it stops before it writes its recipe.
_BEFORE = (".lock", "run.log", "recipe.yaml.tmp", PROGRESS, f"{PROGRESS}.tmp")


def _check_owner(path: Path, resolved: Json, *, update: bool) -> None:
    """Raise RunFolderError if a folder belongs to another recipe, or is not a run's folder."""
    existing = path / "recipe.yaml"
    if existing.is_file():
        previous = _with_new_defaults(_read_recipe(existing, update=update))
        # Data may be elsewhere than last time: artefacts are told by what they were made from.
        roots = [data_root(values) for values in (previous, resolved) if isinstance(values, dict)]
        changed = _differences(without_root(previous, roots), without_root(resolved, roots))
        if changed and not update and _holds_work(path):
            shown = "; ".join(f"{key}: {_short(old)} → {_short(new)}" for key, old, new in changed[:4])
            raise RunFolderError(
                "output",
                str(path),
                f"belongs to a recipe with other settings ({shown})",
                "choose another `output` (and `reuse` this one's stores), or pass --update to redo what "
                "depends on them",
            )
    elif path.is_dir() and any(entry.name not in _BEFORE for entry in path.iterdir()):
        raise RunFolderError(
            "output", str(path), "is not empty and not a run's folder", "choose another `output`"
        )


def _holds_work(path: Path) -> bool:
    """Whether a run's folder holds artefacts, scored shards or checkpoints: a refused run leaves none."""
    finished = any(not stamp.parent.name.endswith(PARTIAL) for stamp in path.rglob(STAMP))
    return finished or any(any(path.rglob(pattern)) for pattern in ("shard-*.arrow", "checkpoint-*"))


def _read_recipe(path: Path, *, update: bool) -> object:
    """The recipe that a folder belongs to; None if it is damaged and may be rewritten."""
    try:
        return read_resolved(path)
    except (yaml.YAMLError, ValueError) as error:
        if update:
            return None
        raise RunFolderError(
            str(path),
            None,
            f"is damaged: it is no longer YAML ({' '.join(str(error).split())[:120]})",
            "pass --update to rewrite it; what was made from other settings is made again",
        ) from error


def _with_new_defaults(previous: object) -> object:
    """A run's recipe with the defaults of settings that are newer; unchanged if it can no longer be read."""
    if not isinstance(previous, dict):
        return previous
    try:
        return parse_recipe(previous).model_dump(mode="json")
    except (RecipeError, TypeError, ValueError):
        return previous


def environment() -> Json:
    """What a run uses: versions, processor, memory."""
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


def _differences(old: object, new: object, key: str = "") -> list[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        changes: list[tuple[str, object, object]] = []
        # The order of teachers fixes the ids, that of languages the order of draws.
        if key in ("teachers", "languages") and list(old) != list(new) and old.keys() == new.keys():
            changes.append((f"order of {key}", ", ".join(old), ", ".join(new)))
        for name in sorted(old.keys() | new.keys(), key=str):
            place = f"{key}.{name}".lstrip(".")
            # The places of runs, of scoring and of trackers do not change results.
            if place not in ("reuse", "output", "data") and not place.endswith(WHERE):
                changes += _differences(old.get(name), new.get(name), place)
        return changes
    # Earlier versions wrote the architecture even if it was unset; their runs continue.
    unset = key == "student.model_type" and all(value in (None, MODEL_TYPE) for value in (old, new))
    return [] if old == new or unset else [(key, old, new)]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
