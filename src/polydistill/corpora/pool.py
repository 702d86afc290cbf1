"""Where the parts of a text are worked on: in this process, or in several on this machine.

`ray_pool` has the same for the machines of a cluster. All of them call a function of a module with an object
that all tasks share and with a task's own arguments, and give results in order of completion.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from itertools import chain, islice
from types import ModuleType
from typing import Any, Protocol

import psutil
from loky import ProcessPoolExecutor, cpu_count

from polydistill.errors import CorpusError

# A task whose worker is lost this often is not tried again.
MAX_TRIES = 3
# Tasks per worker at a time: one is sent while another is worked on.
AHEAD = 2
# What a worker takes at most, with the tokenizers of a merge.
WORKER_BYTES = 400 << 20
_PARENT_SECONDS = 1.0

# Tokenizers and words take as much as that; a process that is replaced costs a second.
warnings.filterwarnings("ignore", message="A worker was restarted", category=UserWarning)

Say = Callable[[str], None]
Work = Callable[..., bytes]


@dataclass(frozen=True)
class Task:
    """A call: its number, the text that it works on in words, and its arguments after the shared object."""

    index: int
    place: str
    arguments: tuple[Any, ...]


class Pool(Protocol):
    """Something that works on tasks.

    shares_disk  whether its workers read and write the files of this process
    """

    shares_disk: bool

    def map(self, work: Work, shared: object, tasks: Iterable[Task]) -> Iterator[tuple[int, bytes]]:
        """(index, result) of `work(shared, *arguments)` for each task, in order of completion.

        Takes tasks only as fast as they are worked on. Raises what `work` raises, and CorpusError for a task
        whose worker is lost MAX_TRIES times.
        """
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...


class Alone:
    """This process.

    one_core  whether tokenizers, which use all cores by themselves, use one
    """

    shares_disk = True

    def __init__(self, *, one_core: bool = False) -> None:
        self.one_core = one_core

    def map(self, work: Work, shared: object, tasks: Iterable[Task]) -> Iterator[tuple[int, bytes]]:
        """See `Pool.map`."""
        for task in tasks:
            with _one_core() if self.one_core else nullcontext():
                result = work(shared, *task.arguments)
            yield task.index, result

    def close(self) -> None:
        """Nothing to stop."""


def default_workers() -> int:
    """As many as this process may use cores, and as memory has room for."""
    room = psutil.virtual_memory().available // WORKER_BYTES
    return max(1, min(int(cpu_count()), room))


@dataclass(eq=False)
class _Worker:
    """A process: an executor each, so that a process that dies takes no other's tasks with it."""

    executor: ProcessPoolExecutor
    tasks: deque[Task] = field(default_factory=deque)
    shared: int = -1


class Processes:
    """Processes on this machine, started at the second task and kept until `close`.

    say  prints a line
    """

    shares_disk = True

    def __init__(self, workers: int, say: Say = lambda line: None) -> None:
        self.workers, self.say = workers, say
        self._pool: list[_Worker] = []
        self._number = 0

    def map(self, work: Work, shared: object, tasks: Iterable[Task]) -> Iterator[tuple[int, bytes]]:
        """See `Pool.map`. A single task is worked on here: processes take a second to start."""
        iterator = iter(tasks)
        first = list(islice(iterator, 2))
        if len(first) < 2:
            yield from Alone().map(work, shared, first)
            return
        blob = pickle.dumps(shared)
        self._number += 1
        waiting = deque[Task]()
        iterator = chain(first, iterator)
        running: dict[Future[bytes | None], tuple[_Worker, Task]] = {}
        tries: Counter[int] = Counter()
        try:
            while True:
                self._fill(running, waiting, iterator, work, blob)
                if not running:
                    if not waiting:
                        return
                    continue
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    if future not in running:
                        continue
                    worker, task = running[future]
                    try:
                        result = future.result()
                    except BrokenProcessPool as error:
                        self._lose(running, waiting, worker, tries, error)
                        continue
                    del running[future]
                    worker.tasks.remove(task)
                    if result is None:
                        worker.shared = -1
                        waiting.appendleft(task)
                    else:
                        yield task.index, result
        finally:
            # After an error nothing waits for what is still being worked on.
            if running:
                self.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self._pool:
            worker.executor.shutdown(wait=True, kill_workers=True)
        self._pool = []

    def _fill(
        self,
        running: dict[Future[bytes | None], tuple[_Worker, Task]],
        waiting: deque[Task],
        tasks: Iterator[Task],
        work: Work,
        blob: bytes,
    ) -> None:
        """Give every worker tasks, and start one where there are more tasks than workers."""
        for _ in range(AHEAD):
            for place in range(self.workers):
                worker = self._pool[place] if place < len(self._pool) else None
                if worker is not None and len(worker.tasks) >= AHEAD:
                    continue
                if not waiting:
                    waiting.extend(islice(tasks, 1))
                if not waiting:
                    return
                if worker is None:
                    worker = _Worker(_start())
                    self._pool.append(worker)
                task = waiting.popleft()
                sent = None if worker.shared == self._number else blob
                worker.shared = self._number
                try:
                    future = worker.executor.submit(call, work, self._number, sent, task.arguments)
                except BrokenProcessPool:
                    # It died since its last task. What it still has fails by itself, and is counted there.
                    waiting.appendleft(task)
                    if not worker.tasks:
                        self._pool.remove(worker)
                        worker.executor.shutdown(wait=False, kill_workers=True)
                    continue
                worker.tasks.append(task)
                running[future] = (worker, task)

    def _lose(
        self,
        running: dict[Future[bytes | None], tuple[_Worker, Task]],
        waiting: deque[Task],
        worker: _Worker,
        tries: Counter[int],
        error: Exception,
    ) -> None:
        """Replace a worker that died; its tasks wait again."""
        self._pool.remove(worker)
        worker.executor.shutdown(wait=False, kill_workers=True)
        for future in [future for future, (other, _) in running.items() if other is worker]:
            del running[future]
        # The oldest is what it worked on.
        task = worker.tasks[0]
        tries[task.index] += 1
        if tries[task.index] >= MAX_TRIES:
            raise lost("corpora.workers", self.workers, task.place, error)
        waiting.extendleft(reversed(worker.tasks))
        self.say(f"corpora: a worker was lost, {task.place} is worked on again")


def lost(field: str, value: object, place: str, error: Exception) -> CorpusError:
    """The error for a task whose worker was lost MAX_TRIES times."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CorpusError(
        field,
        value,
        f"a worker was lost {MAX_TRIES} times on {place}, last: {reason}",
        "if memory is short, lower corpora.workers; otherwise look at these lines, or leave them out "
        "(first_line, num_lines); the same command resumes",
    )


# The object that the tasks of this process share, by its number.
_shared: tuple[int, object] = (-1, None)


def call(work: Work, number: int, blob: bytes | None, arguments: tuple[Any, ...]) -> bytes | None:
    """Run a task in a worker; `blob` holds the shared object where this worker has another one.

    Returns None if the worker has another one and got no blob: it is a new process, for loky replaces one
    whose memory has grown.
    """
    global _shared
    # Each worker is one core's.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if _shared[0] != number:
        if blob is None:
            return None
        _shared = (number, pickle.loads(blob))
    return work(_shared[1], *arguments)


def _start() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, initializer=_begin, initargs=(os.getpid(),))


def _begin(parent: int) -> None:
    """Prepare a worker: it ends when the process that started it has ended, however."""
    sys.meta_path.insert(0, _NoPandas())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _NoPandas(MetaPathFinder):
    """pyarrow imports pandas at its first array, to know its types. No worker has any, and the import takes
    as long as all others together, and 40 MB.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "pandas":
            raise ImportError("not needed in a worker")


@contextmanager
def _one_core() -> Iterator[None]:
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
