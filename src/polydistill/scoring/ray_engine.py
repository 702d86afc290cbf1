"""Scoring on Ray: a pool of workers with shards as the unit; another worker takes a lost one's shards.

The driver reads examples, sends them shard by shard, checks the results, and writes them like `local.score`.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydistill import ray_session
from polydistill.config.scoring import Ray
from polydistill.errors import ClusterError, UserError
from polydistill.scoring.local import missing_shards
from polydistill.scoring.ray_transfer import pack
from polydistill.scoring.ray_worker import PACKAGES, ScoredShard, ShardWorker
from polydistill.scoring.shards import HasTexts, Job
from polydistill.scoring.storage import ShardStorage, checksum
from polydistill.store.writer import StoreWriter

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from transformers import PreTrainedModel

# A shard whose worker is lost this often is not tried again.
MAX_TRIES = 3
# Shards per worker at a time: one is tokenised while another is scored.
AHEAD = 2
WAITING_SECONDS = 60.0


def score_on_ray(
    folder: Path,
    job: Job,
    examples: HasTexts,
    model: PreTrainedModel,
    *,
    workers: Workers,
    progress: Callable[[int, int], None] = lambda examples, tokens: None,
) -> dict[str, Any]:
    """As `local.score`, but by workers on Ray; the bytes are the same, shards arrive in any order.

    model     on the CPU; workers get its weights from this process
    progress  called with the examples and tokens of each finished shard
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
        # Without the start of Ray and its workers, as `local.score` excludes loading the teacher.
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
    """Take shards that an earlier driver's workers left in the storage; return those still to score."""
    stored, left, ids = storage.indices(), [], examples.ids
    for index in todo:
        data = storage.get(index, stored.get(index, []))
        rows = job.rows(index, len(examples))
        # The checksum in the name does not exclude a copy under another index.
        if data is None or not writer.is_shard(index, data, ids[rows.start : rows.stop].tolist()):
            left.append(index)
        else:
            writer.put(index, data)
            progress(len(rows), 0)
    return left


@dataclass(eq=False)
class Worker:
    """An actor; `ready` once it has accepted the job, `new` until its first job."""

    actor: ActorHandle
    ready: bool = False
    new: bool = True


@dataclass
class Work:
    """A running job: waiting shards, failures of each, and running calls with their shard (None: `begin`)."""

    waiting: deque[int]
    tries: Counter[int] = field(default_factory=Counter)
    calls: dict[ObjectRef, tuple[Worker, int | None]] = field(default_factory=dict)
    lost_at_start: int = 0

    @property
    def unfinished(self) -> int:
        """Shards that wait or are being scored."""
        return len(self.waiting) + sum(index is not None for _, index in self.calls.values())

    def under_way(self, worker: Worker) -> int:
        """A worker's running calls."""
        return sum(called is worker for called, _ in self.calls.values())

    def drop(self, worker: Worker) -> list[int]:
        """Drop a worker's calls; return their shards."""
        calls = [call for call, (called, _) in self.calls.items() if called is worker]
        shards = [self.calls.pop(call)[1] for call in calls]
        return sorted(shard for shard in shards if shard is not None)


class Workers:
    """Workers on Ray, started on first use and kept across stores until `close`.

    settings  `scoring.ray`
    say       prints a line
    ready_at  when the first worker began the last store, by `time.perf_counter`
    """

    def __init__(self, settings: Ray, say: Callable[[str], None] = lambda line: None) -> None:
        self.settings, self.say = settings, say
        self.ready_at = 0.0
        self._started = self._ours = False
        self.pool: list[Worker] = []
        self._teacher: tuple[int, PreTrainedModel | None, ObjectRef] = (-1, None, None)
        self._num_gpus, self._num_workers, self._num_jobs = 0.0, 0, 0

    def score(
        self, job: Job, model: PreTrainedModel, examples: HasTexts, todo: Sequence[int]
    ) -> Iterator[tuple[int, ScoredShard]]:
        """(index, shard) of every shard of `todo`, in order of completion."""
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
                            f"scoring on Ray: waiting for workers, {_shown(ray_session.resources())}; "
                            f"free are {free.get('CPU', 0):g} cores, {free.get('GPU', 0):g} GPUs"
                        )
                    continue
                worker, index = work.calls[done[0]]
                try:
                    result = ray.get(done[0])
                    if isinstance(result, ScoredShard) and checksum(result.data) != result.digest:
                        raise RayError("a shard's bytes were damaged in transfer")
                except RayTaskError as error:
                    # A user's error is raised as it is without Ray; others are bugs, with a traceback.
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
            # After an error nothing waits for shards that are still being scored.
            if work.unfinished:
                self._stop()

    def close(self) -> None:
        """Stop the workers, and disconnect from Ray if this object connected."""
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
        """Mark a worker that has accepted the job."""
        if not any(other.ready for other in self.pool):
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

    def _begin(self, job: Job, model: PreTrainedModel) -> Callable[[Worker], ObjectRef]:
        """A function that makes a worker begin a job. A teacher's weights are sent once per machine."""
        import ray

        number, known, parcel = self._teacher
        if known is not model:
            number, parcel = number + 1, ray.put(pack(model))
            self._teacher = (number, model, parcel)
        # Without the tokenizers' cached properties, which are larger than the tokenizers.
        plain = replace(
            job, tokenizer=replace(job.tokenizer), beside=tuple(replace(other) for other in job.beside)
        )
        packed = ray.put(pickle.dumps(plain))
        self._num_jobs += 1
        given = (
            ray_session.versions(PACKAGES),
            self._num_jobs,
            packed,
            self.settings.storage,
            number,
            parcel,
        )
        return lambda worker: worker.actor.begin.remote(*given)

    def _new_worker(self) -> Worker:
        import ray

        actor = ray.remote(ShardWorker).options(
            num_cpus=self.settings.num_cpus, num_gpus=self._num_gpus, max_concurrency=AHEAD, max_restarts=0
        )
        return Worker(actor.remote(self.settings.num_cpus, self._num_gpus > 0))

    def _fill(
        self,
        work: Work,
        begin: Callable[[Worker], ObjectRef],
        read: Callable[[int], tuple[list[int], list[str]]],
    ) -> None:
        """Start missing workers, and give every ready worker shards."""
        while len(self.pool) < min(self._num_workers, work.unfinished):
            worker = self._new_worker()
            self.pool.append(worker)
            work.calls[begin(worker)] = (worker, None)
        # One shard per worker and round, so that the last shards are spread over the workers.
        for place in range(AHEAD):
            for worker in self.pool:
                if work.waiting and worker.ready and work.under_way(worker) == place:
                    index = work.waiting.popleft()
                    work.calls[worker.actor.score.remote(index, *read(index))] = (worker, index)

    def lose(self, work: Work, worker: Worker, index: int | None, error: Exception) -> None:
        """Remove a worker and requeue its shards; ClusterError after MAX_TRIES failures."""
        import ray

        ray.kill(worker.actor)
        self.pool.remove(worker)
        shards = work.drop(worker)
        work.waiting.extendleft(reversed(shards))
        work.tries.update(shards)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if index is None and worker.new:
            # A worker that has finished a job before was lost with its machine, not because of this job.
            work.lost_at_start += 1
        failed = [shard for shard in shards if work.tries[shard] >= MAX_TRIES]
        if failed or work.lost_at_start >= MAX_TRIES:
            what = f"shard {failed[0]} lost its worker" if failed else "workers were lost before they began,"
            raise ClusterError(
                "scoring.engine",
                "ray",
                f"{what} {MAX_TRIES} times, last: {reason}",
                "see Ray's logs on that machine; if memory is short, lower scoring.batch_tokens (which "
                "scores all shards again) or scoring.ray.workers; the same command resumes",
            )
        again = (
            f"shards {', '.join(map(str, shards))} are scored again" if shards else "another takes its place"
        )
        self.say(f"scoring on Ray: a worker was lost, {again} ({reason[:120]})")


def _shown(machines: list[dict[str, float]]) -> str:
    """A cluster's size in words."""
    cores, gpus = (sum(machine.get(name, 0) for machine in machines) for name in ("CPU", "GPU"))
    return f"the cluster has {len(machines)} machines, {cores:g} cores, {gpus:g} GPUs"
