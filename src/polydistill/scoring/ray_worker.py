"""A worker on Ray: one teacher, one shard after the other.

A worker needs no disk in common with the driver: teacher, examples and shards are transferred by Ray's object
store. This module does not import Ray, so it can be tested without it.
"""

from __future__ import annotations

import os
import pickle
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from polydistill.models.memory import keep_freed_memory
from polydistill.ray_session import check_versions
from polydistill.scoring.ray_transfer import Parcel, unpack
from polydistill.scoring.shards import Job
from polydistill.scoring.storage import ShardStorage, checksum
from polydistill.store.writer import StoreWriter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The writer only encodes here.
_NOWHERE = Path()

# Packages that a store's numbers depend on.
PACKAGES = ("polydistill", "torch", "transformers", "tokenizers", "numpy", "pyarrow")


@dataclass(frozen=True)
class ScoredShard:
    """A shard's bytes, their checksum at the worker, and the number of scored tokens."""

    data: bytes
    digest: str
    tokens: int


class ShardWorker:
    """Scores shards of one job at a time.

    num_threads  of PyTorch and the tokenizer
    use_gpu      whether it computes on the GPU that Ray assigned to it
    """

    def __init__(self, num_threads: int, use_gpu: bool) -> None:
        # The tokenizer's thread pool reads it on first use.
        os.environ["RAYON_NUM_THREADS"] = str(num_threads)
        self._num_threads = num_threads
        self._device = torch.device("cuda" if use_gpu else "cpu")
        if not use_gpu:
            keep_freed_memory()
        self._lock = threading.Lock()
        self._teacher = self._number = -1
        self._model: PreTrainedModel | None = None

    def begin(
        self,
        expected: dict[str, str],
        number: int,
        job: bytes,
        storage: str | None,
        teacher: int,
        parcel: Parcel,
    ) -> str:
        """Accept a job; return this worker's process, machine and device, in words.

        expected  the driver's versions
        number    of the job; a worker that starts slowly may receive an earlier job later
        job       a pickled Job, unpickled only if the versions agree
        teacher   number of the model in `parcel`, which is unpacked if this worker has another
        Raises ClusterError if versions differ.
        """
        check_versions(expected)
        with self._lock:
            if number > self._number:
                self._number = number
                self._job: Job = pickle.loads(job)
                self._writer = StoreWriter(_NOWHERE, self._job.identity)
                self._storage = None if storage is None else ShardStorage(storage, self._job.identity)
                if teacher != self._teacher:
                    self._model = unpack(parcel).eval().to(self._device)
                    self._teacher = teacher
        return f"process {os.getpid()} on {os.uname().nodename}, {self._device.type}"

    def score(self, index: int, ids: list[int], texts: list[str]) -> ScoredShard:
        """Score one shard. Two calls may run at a time: one tokenises while the other scores."""
        # OpenMP's number of threads is set per thread.
        torch.set_num_threads(self._num_threads)
        masked = self._job.mask(ids, texts)
        with self._lock:
            examples = self._job.score(self._model, ids, masked)
        data = self._writer.encode(index, examples)
        if self._storage is not None:
            self._storage.put(index, data)
        return ScoredShard(data, checksum(data), sum(len(example.input_ids) for example in masked))
