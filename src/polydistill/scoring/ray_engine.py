"""Scoring on Ray: a pool of workers, shards as the unit, a lost worker's shards scored again by another.

The driver reads examples, hands them out a shard at a time, checks what comes back, and writes it as `local.score` does.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polydistill.config.scoring import Ray
from polydistill.errors import ClusterError, UserError
from polydistill.scoring import ray_session
from polydistill.scoring.local import missing_shards
from polydistill.scoring.ray_transfer import pack
from polydistill.scoring.ray_worker import ScoredShard, ShardWorker, versions
from polydistill.scoring.shards import HasTexts, Job
from polydistill.scoring.storage import ShardStorage, checksum
from polydistill.store.writer import StoreWriter

# A shard that takes its worker with it so often is not tried again.
MAX_TRIES = 3
# Shards that a worker has at hand: one is tokenised while another is scored.
AHEAD = 2
WAITING_SECONDS = 60.0


def score_on_ray(
    folder: Path,
    job: Job,
    examples: HasTexts,
    model: Any,
    *,
    workers: Workers,
    progress: Callable[[int, int], None] = lambda examples, tokens: None,
) -> dict[str, Any]:
    """As `local.score`, by workers on Ray: the same bytes, whole shards as they come.

    model     on the processor; workers get its weights from this process
    progress  called with the examples and tokens of each shard that is done
    Raises what `local.score` raises, and ClusterError if a shard is lost MAX_TRIES times.
    """
    writer = StoreWriter(folder, job.identity)
    todo = missing_shards(writer, job, examples, progress)
    if workers.settings.storage is not None:
        todo = _fetch(
            ShardStorage(workers.settings.storage, job.identity), writer, job, examples, todo, progress
        )
    tokens = seconds = 0.0
    if todo:
        for index, shard in workers.score(job, model, examples, todo):
            writer.put(index, shard.data)
            tokens += shard.tokens
            progress(len(job.rows(index, len(examples))), shard.tokens)
        # Starting Ray and its workers left out, as loading the teacher is elsewhere.
        seconds = time.perf_counter() - workers.ready_at
    return writer.finish({}) | {"tokens_scored": tokens, "seconds": seconds}


def _fetch(
    storage: ShardStorage,
    writer: StoreWriter,
    job: Job,
    examples: HasTexts,
    todo: list[int],
    progress: Callable[[int, int], None],
) -> list[int]:
    """Take shards from the storage that an earlier driver's workers left there; returns those still to score."""
    there, left, ids = storage.indices(), [], examples.ids
    for index in todo:
        data = storage.get(index, there.get(index, []))
        rows = job.rows(index, len(examples))
        # A name holds a checksum, and a file may be copied under another name.
        if data is None or not writer.is_shard(index, data, ids[rows.start : rows.stop].tolist()):
            left.append(index)
        else:
            writer.put(index, data)
            progress(len(rows), 0)
    return left


@dataclass(eq=False)
class Worker:
    """An actor; `ready` when it has taken on the job, `new` until its first."""

    actor: Any
    ready: bool = False
    new: bool = True


@dataclass
class Work:
    """A job under way: shards that wait, how often each was tried, and calls under way with their shard (None: begin)."""

    waiting: deque[int]
    tries: Counter[int] = field(default_factory=Counter)
    calls: dict[Any, tuple[Worker, int | None]] = field(default_factory=dict)
    lost_at_start: int = 0

    @property
    def unfinished(self) -> int:
        """Shards that wait or are under way."""
        return len(self.waiting) + sum(index is not None for _, index in self.calls.values())

    def under_way(self, worker: Worker) -> int:
        """Calls that a worker has."""
        return sum(one is worker for one, _ in self.calls.values())

    def drop(self, worker: Worker) -> list[int]:
        """Forget a worker's calls; returns their shards."""
        calls = [call for call, (one, _) in self.calls.items() if one is worker]
        shards = [self.calls.pop(call)[1] for call in calls]
        return sorted(shard for shard in shards if shard is not None)


class Workers:
    """Workers on Ray, started when first needed and kept from store to store until `close`.

    settings  `scoring.ray`
    say       where lines for people go
    ready_at  when the first of them began with the last store, by `time.perf_counter`
    """

    def __init__(self, settings: Ray, say: Callable[[str], None] = lambda line: None) -> None:
        self.settings, self.say = settings, say
        self.ready_at = 0.0
        self._started = self._ours = False
        self.pool: list[Worker] = []
        self._teacher: tuple[int, Any, Any] = (-1, None, None)
        self._num_gpus, self._num_workers, self._num_jobs = 0.0, 0, 0

    def score(
        self, job: Job, model: Any, examples: HasTexts, todo: Sequence[int]
    ) -> Iterator[tuple[int, ScoredShard]]:
        """(index, shard) of every shard of `todo`, in the order in which they are done."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        self._start()
        begin = self._begin(job, model)
        work = Work(deque(todo))
        for worker in self.pool:
            worker.ready = False
            work.calls[begin(worker)] = (worker, None)
        self.ready_at = time.perf_counter()
        try:
            while work.unfinished:
                self._fill(work, begin, lambda index: job.read(index, examples))
                done, _ = ray.wait(list(work.calls), timeout=WAITING_SECONDS)
                if not done:
                    if not any(worker.ready for worker in self.pool):
                        free = ray.available_resources()
                        self.say(
                            f"scoring on Ray: waiting for workers, {_shown(ray_session.resources())}; free are "
                            f"{free.get('CPU', 0):g} cores, {free.get('GPU', 0):g} GPUs"
                        )
                    continue
                worker, index = work.calls[done[0]]
                try:
                    result = ray.get(done[0])
                    if isinstance(result, ScoredShard) and checksum(result.data) != result.digest:
                        raise RayError("a shard's bytes were damaged on their way")
                except RayTaskError as error:
                    # What the user can mend is said as it is without Ray; the rest is a bug, with the worker's traceback.
                    raise error.cause if isinstance(error.cause, UserError) else error from None
                except RayError as error:
                    self.lose(work, worker, index, error)
                    continue
                del work.calls[done[0]]
                if isinstance(result, ScoredShard) and index is not None:
                    yield index, result
                else:
                    self._welcome(work, worker, result)
        finally:
            # Nobody waits for what is still being scored when something went wrong.
            if work.unfinished:
                self._stop()

    def close(self) -> None:
        """Stop the workers, and Ray if it was started or joined here."""
        if not self._started:
            return
        import ray

        self._stop()
        self._teacher, self._started = (-1, None, None), False
        if self._ours:
            ray.shutdown()

    def _stop(self) -> None:
        import ray

        for worker in self.pool:
            ray.kill(worker.actor)
        self.pool = []

    def _welcome(self, work: Work, worker: Worker, where: str) -> None:
        """A worker has taken on the job."""
        if not any(one.ready for one in self.pool):
            self.ready_at = time.perf_counter()
        if worker.new:
            self.say(f"scoring on Ray: a worker is ready, {where}")
        worker.ready, worker.new, work.lost_at_start = True, False, 0

    def _start(self) -> None:
        if self._started:
            return
        self._ours = ray_session.start(self.settings)
        self._started = True
        self._num_gpus, self._num_workers = ray_session.needs(self.settings)
        self.say(
            f"scoring on Ray: {self._num_workers} workers at most, {self.settings.num_cpus} threads and "
            f"{self._num_gpus:g} GPUs each, {_shown(ray_session.resources())}"
        )

    def _begin(self, job: Job, model: Any) -> Callable[[Worker], Any]:
        """What tells a worker to take on a job. A teacher's weights go to a machine once, however many workers it has."""
        import ray

        number, known, parcel = self._teacher
        if known is not model:
            number, parcel = number + 1, ray.put(pack(model))
            self._teacher = (number, model, parcel)
        # Without what the tokenizer has worked out, which is larger than it is.
        plain = replace(
            job, tokenizer=replace(job.tokenizer), beside=tuple(replace(other) for other in job.beside)
        )
        packed = ray.put(pickle.dumps(plain))
        self._num_jobs += 1
        given = (versions(), self._num_jobs, packed, self.settings.storage, number, parcel)
        return lambda worker: worker.actor.begin.remote(*given)

    def _new_worker(self) -> Worker:
        import ray

        actor = ray.remote(ShardWorker).options(
            num_cpus=self.settings.num_cpus, num_gpus=self._num_gpus, max_concurrency=AHEAD, max_restarts=0
        )
        return Worker(actor.remote(self.settings.num_cpus, self._num_gpus > 0))

    def _fill(
        self, work: Work, begin: Callable[[Worker], Any], read: Callable[[int], tuple[list[int], list[str]]]
    ) -> None:
        """Give every ready worker shards to do, and make the workers that are missing."""
        while len(self.pool) < min(self._num_workers, work.unfinished):
            worker = self._new_worker()
            self.pool.append(worker)
            work.calls[begin(worker)] = (worker, None)
        # A round for each place, so that the last shards are spread over the workers.
        for place in range(AHEAD):
            for worker in self.pool:
                if work.waiting and worker.ready and work.under_way(worker) == place:
                    index = work.waiting.popleft()
                    work.calls[worker.actor.score.remote(index, *read(index))] = (worker, index)

    def lose(self, work: Work, worker: Worker, index: int | None, error: Exception) -> None:
        """Take a worker out and its shards back; ClusterError for a shard, or a start, that failed MAX_TRIES times."""
        import ray

        ray.kill(worker.actor)
        self.pool.remove(worker)
        shards = work.drop(worker)
        work.waiting.extendleft(reversed(shards))
        work.tries.update(shards)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if index is None and worker.new:
            # One that has worked before was lost with its machine, not by what it was told.
            work.lost_at_start += 1
        failed = [shard for shard in shards if work.tries[shard] >= MAX_TRIES]
        if failed or work.lost_at_start >= MAX_TRIES:
            what = f"shard {failed[0]} lost its worker" if failed else "workers were lost before they began,"
            raise ClusterError(
                "scoring.engine",
                "ray",
                f"{what} {MAX_TRIES} times, last: {reason}",
                "see Ray's logs on that machine; where memory is short, lower scoring.batch_tokens (which scores anew) or "
                "scoring.ray.workers; the same command goes on",
            )
        again = (
            f"shards {', '.join(map(str, shards))} are scored again" if shards else "another takes its place"
        )
        self.say(f"scoring on Ray: a worker was lost, {again} ({reason[:120]})")


def _shown(machines: list[dict[str, float]]) -> str:
    """A cluster in words."""
    cores, gpus = (sum(machine.get(name, 0) for machine in machines) for name in ("CPU", "GPU"))
    return f"the cluster has {len(machines)} machines, {cores:g} cores, {gpus:g} GPUs"
