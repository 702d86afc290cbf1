"""Parts of a text on Ray: tasks on the machines of a cluster, which need no disk in common.

A part goes out with its text, its result comes back as bytes, and the driver writes it.
"""

from __future__ import annotations

import pickle
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from polydistill import ray_session
from polydistill.config.scoring import Ray
from polydistill.corpora.pool import AHEAD, MAX_TRIES, Say, Task, Work, call, lost
from polydistill.errors import UserError

if TYPE_CHECKING:
    from ray import ObjectRef

# Packages that a corpus' bytes depend on.
PACKAGES = ("polydistill", "tokenizers", "numpy", "pyarrow")
_FIELD = "corpora.address"
_WAITING_SECONDS = 60.0


class RayTasks:
    """Tasks on Ray, which is joined or started at the first one and left at `close`.

    address  of a cluster, see `config.shared.Corpora`
    workers  at most; None: as many as the cluster has cores
    """

    shares_disk = False

    def __init__(self, address: str | None, workers: int | None, say: Say = lambda line: None) -> None:
        self.settings, self.workers, self.say = Ray(address=address), workers, say
        self._started = self._ours = False
        self._number = 0

    def map(self, work: Work, shared: object, tasks: Iterable[Task]) -> Iterator[tuple[int, bytes]]:
        """See `Pool.map`."""
        iterator = iter(tasks)
        first = next(iterator, None)
        if first is None:
            return
        import ray
        from ray.exceptions import RayError, RayTaskError

        workers = self._start()
        self._number += 1
        # With Ray's own retries, a part that ends its worker would be tried without end.
        remote = ray.remote(_call).options(num_cpus=1, max_retries=0)
        given = (ray_session.versions(PACKAGES), work, self._number, ray.put(pickle.dumps(shared)))
        waiting = deque([first])
        running: dict[ObjectRef, Task] = {}
        tries: Counter[int] = Counter()
        try:
            while True:
                waiting.extend(islice(iterator, max(0, AHEAD * workers - len(running) - len(waiting))))
                while waiting and len(running) < AHEAD * workers:
                    task = waiting.popleft()
                    running[remote.remote(*given, task.arguments)] = task
                if not running:
                    return
                done, _ = ray.wait(list(running), timeout=_WAITING_SECONDS)
                if not done:
                    self.say(f"corpora on Ray: waiting for {len(running)} parts")
                    continue
                task = running.pop(done[0])
                try:
                    result = ray.get(done[0])
                except RayTaskError as error:
                    # A user's error is raised as it is without Ray; others are bugs, with a traceback.
                    raise error.cause if isinstance(error.cause, UserError) else error from None
                except RayError as error:
                    tries[task.index] += 1
                    if tries[task.index] >= MAX_TRIES:
                        raise lost("corpora.engine", "ray", task.place, error) from error
                    self.say(f"corpora on Ray: a worker was lost, {task.place} is worked on again")
                    waiting.append(task)
                    continue
                yield task.index, result
        finally:
            for call_ in running:
                ray.cancel(call_, force=True)

    def close(self) -> None:
        """Leave Ray, if this object joined it."""
        if self._ours:
            import ray

            ray.shutdown()
        self._started = self._ours = False

    def _start(self) -> int:
        if not self._started:
            self._ours = ray_session.start(self.settings, field=_FIELD)
            self._started = True
        room = ray_session.room(ray_session.resources(), 1, 0)
        workers = self.workers or max(1, room)
        self.say(f"corpora on Ray: {workers} tasks at a time, of one core each")
        return workers


def _call(
    expected: dict[str, str], work: Work, number: int, blob: bytes, arguments: tuple[Any, ...]
) -> bytes:
    """Run a task; ClusterError if this machine has other versions of PACKAGES."""
    ray_session.check_versions(expected, _FIELD)
    result = call(work, number, blob, arguments)
    assert result is not None, "the shared object goes with every task"
    return result
