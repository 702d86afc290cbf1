"""How far a run is: a small file in its folder, for `polydistill status`, and bars on a terminal."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from polydistill.disk import lock_holder, read_record
from polydistill.errors import RunFolderError

PROGRESS = ".progress.json"
# Seconds between two writes of it: a step may take a millisecond.
EVERY = 1.0
LOG_LINES = 5
State = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Position:
    """Where a run is.

    stages   of its kind, in order
    stage    the current one
    what     is counted in it, such as a store; empty: nothing yet
    done     of `total` `unit`s
    left     seconds until `total` at the speed so far; None: not known
    note     more of it, such as losses
    seconds  stage → how long it took or takes, earlier starts of the run included
    updated  time of the record, in seconds since 1970
    """

    stages: tuple[str, ...] = ()
    stage: str = ""
    what: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    left: float | None = None
    note: str = ""
    state: State = "running"
    seconds: dict[str, float] = field(default_factory=dict)
    updated: float = 0.0

    @property
    def number(self) -> int:
        """The current stage's number, from 1."""
        return self.stages.index(self.stage) + 1 if self.stage in self.stages else 0

    @property
    def counted(self) -> str:
        """`1,200/4,000 steps, 2:10 left`."""
        if not self.total:
            return ""
        left = f", {clock(self.left)} left" if self.left is not None and self.state == "running" else ""
        return f"{self.done:,}/{self.total:,} {self.unit}{left}"


# Takes a run's position whenever it changes.
Watch = Callable[[Position], None]


class Count(Protocol):
    """Takes how far something is, see `Meter.count`."""

    def __call__(
        self, what: str, done: int, total: int, unit: str, *, left: float | None = None, note: str = ""
    ) -> None: ...


def uncounted(
    what: str, done: int, total: int, unit: str, *, left: float | None = None, note: str = ""
) -> None:
    """Counts nothing."""


class Meter:
    """Keeps a run's position, and writes it at most once a second.

    folder  of the run; None: nothing is written
    watch   takes each position too
    """

    def __init__(self, folder: Path | None, watch: Watch | None = None) -> None:
        self.folder, self.watch = folder, watch
        self.position = Position()
        self._entered = self._written = self._began = 0.0
        self._first, self._before = 0, 0.0

    def begin(self, stages: Sequence[str]) -> None:
        """A run starts or goes on."""
        earlier = read_position(self.folder) if self.folder else None
        known = earlier.seconds if earlier else {}
        kept = {stage: known[stage] for stage in stages if stage in known}
        self.position = Position(stages=tuple(stages), seconds=kept)

    def enter(self, stage: str) -> None:
        """A stage begins."""
        self._leave()
        self._entered, self._before = time.perf_counter(), self.position.seconds.get(stage, 0.0)
        self._set(stage=stage, what="", done=0, total=0, unit="", left=None, note="")

    def count(
        self, what: str, done: int, total: int, unit: str, *, left: float | None = None, note: str = ""
    ) -> None:
        """`done` of `total` units are finished.

        left  seconds until the end; by default at the speed since the first call for `what`
        """
        if what != self.position.what or total != self.position.total or done < self.position.done:
            self._began, self._first = time.perf_counter(), done
        elif left is None and done > self._first:
            left = (time.perf_counter() - self._began) / (done - self._first) * (total - done)
        self._set(what=what, done=done, total=total, unit=unit, left=left, note=note)

    def end(self, state: State) -> None:
        """The run ends."""
        self._leave()
        self._set(state=state)

    def _leave(self) -> None:
        if self.position.stage:
            self._set()
        self._written = 0.0

    def _set(self, **changes: Any) -> None:
        stage, seconds = changes.get("stage", self.position.stage), self.position.seconds
        if stage:
            seconds = seconds | {stage: round(self._before + time.perf_counter() - self._entered, 2)}
        self.position = replace(self.position, **changes, seconds=seconds, updated=time.time())
        if self.watch is not None:
            self.watch(self.position)
        now = time.perf_counter()
        if now - self._written >= EVERY:
            self._written = now
            self._write()

    def _write(self) -> None:
        if self.folder is None:
            return
        # A record of progress must not stop a run, and needs no fsync.
        temporary = self.folder / f"{PROGRESS}.tmp"
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
            with temporary.open("x", encoding="utf-8") as handle:
                json.dump(asdict(self.position), handle)
            temporary.replace(self.folder / PROGRESS)


def read_position(folder: Path) -> Position | None:
    """The last recorded position of a run; None if there is none, or no whole one."""
    record = read_record(folder / PROGRESS)
    try:
        position = Position(**record | {"stages": tuple(record["stages"])})
        counts = (position.done, position.total, position.updated, position.left or 0.0)
        whole = all(math.isfinite(float(number)) for number in (*counts, *position.seconds.values()))
        words = (position.stage, position.what, position.unit, position.note, *position.stages)
        return position if whole and all(isinstance(word, str) for word in words) else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def print_status(folder: Path, console: Console) -> Position | None:
    """Print how far a run is; RunFolderError for a folder that is none.

    Reads only small records: it may be called at any time, also on a run of another process.
    """
    position, process = read_position(folder), lock_holder(folder)
    if position is None:
        if not (folder / "recipe.yaml").is_file() and process is None:
            raise RunFolderError(
                str(folder), None, "is not a run's folder", "give the folder that a recipe's `output` names"
            )
        console.print(f"{folder}: no stage has begun", markup=False)
        return None
    last = position.number == len(position.stages)
    ended = {
        "finished": "finished" if last else f"finished up to {position.stage}",
        "failed": "failed; its last lines say why",
    }
    state = f"running, process {process}" if process else ended.get(position.state, "interrupted")
    console.print(f"[bold]{escape(str(folder))}[/bold]: {state}", highlight=False)
    ago = clock(max(0.0, time.time() - position.updated))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(position.updated))
    console.print(f"last sign of life {ago} ago ({when})", highlight=False)
    if not process and position.state != "finished":
        console.print("The same command continues it.")
    console.print(_stage_table(position, running=process is not None))
    for line in _last_lines(folder / "run.log"):
        console.print(line, markup=False, highlight=False)
    return position


def _stage_table(position: Position, *, running: bool) -> Table:
    table = Table("stage", "", "time", "", box=None, padding=(0, 2, 0, 0))
    for number, stage in enumerate(position.stages, 1):
        here = stage == position.stage and position.state != "finished"
        done = number < position.number or (number == position.number and not here)
        state = ("running" if running else "stopped here") if here else "done" if done else ""
        seconds = position.seconds.get(stage)
        time_of = clock(seconds) if seconds is not None and (here or done) else ""
        counted = "  ".join(part for part in (position.what, position.counted, position.note) if part)
        table.add_row(stage, state, time_of, escape(counted) if here else "")
    return table


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - 4096))
            lines = handle.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return lines[-LOG_LINES:]


@contextmanager
def bars(console: Console | None) -> Iterator[Watch | None]:
    """Bars for a run on a terminal: one for the whole, one for what its stage counts. Elsewhere: None.

    The whole's time is what is known: the stages after the current one come on top.
    """
    if console is None or not console.is_terminal:
        yield None
        return
    with _drawn(console) as progress:
        whole = progress.add_task("", total=None, counted="")
        part = progress.add_task("", total=None, counted="", visible=False)

        def watch(position: Position) -> None:
            share = position.done / position.total if position.total else 0.0
            stages = len(position.stages)
            last = position.number == stages
            left = (
                "" if position.left is None else f"{'' if last else 'at least '}{clock(position.left)} left"
            )
            progress.update(
                whole,
                description=f"{position.stage or 'start'} ({position.number} of {stages})",
                completed=max(0, position.number - 1) + share,
                total=stages,
                counted=left,
            )
            progress.update(
                part,
                description=escape(position.what),
                completed=position.done,
                total=position.total or None,
                counted="  ".join(filter(None, (position.counted, escape(position.note)))),
                visible=bool(position.total),
            )

        yield watch


@contextmanager
def counting(console: Console) -> Iterator[Count]:
    """A bar on a terminal for a command that is no run; elsewhere nothing is counted."""
    if not console.is_terminal:
        yield uncounted
        return
    with _drawn(console) as progress:
        bar = progress.add_task("", total=None, counted="")
        meter = Meter(
            None,
            lambda position: progress.update(
                bar,
                description=escape(position.what),
                completed=position.done,
                total=position.total,
                counted=position.counted,
            ),
        )
        yield meter.count


def _drawn(console: Console) -> Progress:
    """Bars with a name before and counts behind; they go when they are done."""
    columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[counted]}"))
    return Progress(*columns, console=console, transient=True)


def clock(seconds: float) -> str:
    """Seconds as 1:02:03, or 2:03."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
