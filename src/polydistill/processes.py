"""Several processes in one training: torchrun and `accelerate launch` start them all with the same command.

The first process leads: it alone locks the folder, prepares, scores, writes and evaluates. The others wait
for what it made, and train with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
from accelerate import PartialState
from torch import distributed

# A follower waits while its leader scores; torchrun stops it if the leader ends.
LONGEST_WAIT = timedelta(days=60)


def num_processes() -> int:
    """Number of processes that share this run, as set by the launcher; 1 without a launcher."""
    return max(1, int(os.environ.get("WORLD_SIZE") or 1))


def leads() -> bool:
    """Whether this process is the one that writes."""
    return process_index() == 0


def process_index() -> int:
    """This process's number; the leader's is 0."""
    return int(os.environ.get("RANK") or 0) if num_processes() > 1 else 0


def wait_for_all() -> None:
    """Wait until every process gets here; returns at once if there is only one."""
    if num_processes() > 1:
        distributed.barrier(_waiting_group())


@contextmanager
def leader_first() -> Iterator[None]:
    """The leader runs the block while the others wait; then they run it and find what the leader made."""
    if not leads():
        wait_for_all()
    yield
    if leads():
        wait_for_all()


def leave() -> None:
    """Close the connection between the processes, once this one no longer needs the others."""
    if num_processes() > 1 and distributed.is_initialized():
        distributed.destroy_process_group()
        _waiting_group.cache_clear()


@cache
def _waiting_group() -> distributed.ProcessGroup:
    # Trainer reuses the connection that is made here.
    PartialState(cpu=not torch.cuda.is_available())
    # With NCCL a GPU spins while it waits, and the wait times out after minutes.
    group: distributed.ProcessGroup = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return group
