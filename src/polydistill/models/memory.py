"""The allocator's memory for large temporaries."""

from __future__ import annotations

import ctypes
import gc
from functools import cache

# glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Let this process keep freed memory for the next large tensor; False where this cannot be set.

    A step on a CPU allocates and frees the same large tensors repeatedly: logits, gradients of [V, E]. By
    default glibc returns each to the kernel, which clears every page again: measured, a fifth of a step's CPU
    time, and six times the cost of one pass over a tensor of 246 MB. The price is unused memory.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT))


def return_freed_memory() -> bool:
    """Return unused memory to the kernel; False where this is not possible.

    Called after a training or a store: the next one has tensors of other sizes, which would add to it.
    """
    # Reference cycles are freed only by collection.
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    return bool(trim(0))
