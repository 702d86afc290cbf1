"""Several processes in one training: torchrun and `accelerate launch` start them all with the same command.

The first process leads: it alone holds the folder, prepares, scores, writes and evaluates. The others follow: they
find what it made, and train with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed

# A follower waits as long as its leader scores; torchrun ends it if the leader ends.
LONGEST_WAIT = timedelta(days=60)


def num_processes() -> int:
    """How many processes share this run, by what the launcher has set; 1 without a launcher."""
    return max(1, int(os.environ.get("WORLD_SIZE") or 1))


def leads() -> bool:
    """Whether this process is the one that writes."""
    return process_index() == 0


def process_index() -> int:
    """This process's number; the leader's is 0."""
    return int(os.environ.get("RANK") or 0) if num_processes() > 1 else 0


def wait_for_all() -> None:
    """Wait until every process is here; at once where there is one."""
    if num_processes() > 1:
        distributed.barrier(_waiting_group())


@contextmanager
def leader_first() -> Iterator[None]:
    """The leader goes through the block while the others wait; then they go, and find what it made."""
    if not leads():
        wait_for_all()
    yield
    if leads():
        wait_for_all()


def leave() -> None:
    """End what connects the processes, once this one has no more to do with the others."""
    if num_processes() > 1 and distributed.is_initialized():
        distributed.destroy_process_group()
        _waiting_group.cache_clear()


@cache
def _waiting_group() -> Any:
    # Trainer finds the connection that is made here, and makes none of its own.
    PartialState(cpu=not torch.cuda.is_available())
    # NCCL has a GPU spin while it waits, and gives up after minutes.
    return distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
