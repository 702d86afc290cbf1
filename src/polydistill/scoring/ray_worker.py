"""What runs in a worker on Ray: one teacher, one shard after the other.

Nothing here needs a disk in common with the driver: the teacher, the examples and the shards' bytes come and go through
Ray's object store. This module imports no Ray, so it can be tried without.
"""

from __future__ import annotations

import os
import pickle
import threading
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from polydistill.errors import ClusterError
from polydistill.models.memory import keep_freed_memory
from polydistill.scoring.ray_transfer import Parcel, unpack
from polydistill.scoring.shards import Job
from polydistill.scoring.storage import ShardStorage, checksum
from polydistill.store.writer import StoreWriter

# The writer encodes here and writes nothing.
_NOWHERE = Path()

# What the numbers in a store hang on.
PACKAGES = ("polydistill", "torch", "transformers", "tokenizers", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """The versions of PACKAGES in this process."""
    # `2.13.0+cpu` and `2.13.0+cu130` are the same code.
    return {name: version(name).partition("+")[0] for name in PACKAGES}


@dataclass(frozen=True)
class ScoredShard:
    """A shard's bytes, their checksum where they were made, and how many tokens were scored."""

    data: bytes
    digest: str
    tokens: int


class ShardWorker:
    """Scores shards of one job at a time.

    num_threads  that PyTorch and the tokenizer take
    use_gpu      whether it computes on the GPU that Ray has shown to it
    """

    def __init__(self, num_threads: int, use_gpu: bool) -> None:
        # Read by the tokenizer's thread pool when it is first used.
        os.environ["RAYON_NUM_THREADS"] = str(num_threads)
        self._num_threads = num_threads
        self._device = torch.device("cuda" if use_gpu else "cpu")
        if not use_gpu:
            keep_freed_memory()
        self._lock = threading.Lock()
        self._teacher = self._number = -1
        self._model: Any = None

    def begin(
        self,
        expected: dict[str, str],
        number: int,
        job: bytes,
        storage: str | None,
        teacher: int,
        parcel: Parcel,
    ) -> str:
        """Take on a job; returns where this worker is, in words.

        expected  the driver's versions
        number    the job's; a worker that was slow to start may hear of an earlier one later
        job       a pickled Job, which is opened when versions are known to agree
        teacher   the number of the model in `parcel`, which is unpacked if this worker has another
        Raises ClusterError where versions differ.
        """
        different = [
            f"{name} {found} (here {expected[name]})"
            for name, found in versions().items()
            if found != expected[name]
        ]
        if different:
            raise ClusterError(
                "scoring.ray.address",
                None,
                f"machine {os.uname().nodename} has {', '.join(different)}",
                "install the same versions on every machine: other code makes other numbers",
            )
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
        """Score one shard. Two calls may run at a time: one is tokenised while the other is scored."""
        # OpenMP's number of threads is each thread's own.
        torch.set_num_threads(self._num_threads)
        masked = self._job.mask(ids, texts)
        with self._lock:
            examples = self._job.score(self._model, ids, masked)
        data = self._writer.encode(index, examples)
        if self._storage is not None:
            self._storage.put(index, data)
        return ScoredShard(data, checksum(data), sum(len(example.input_ids) for example in masked))
