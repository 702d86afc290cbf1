"""Memory that large temporaries come from."""

from __future__ import annotations

import ctypes
import gc
from functools import cache

# glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for the next large tensor; False where that cannot be said.

    A step on a processor makes and frees the same large tensors again and again: logits, gradients of [V, E]. glibc
    takes each from the kernel and gives it back, and the kernel clears every page of it anew: measured, a fifth of a
    step's processor time, and six times the cost of one pass over a tensor of 246 MB. The price is that memory which
    is free for a while stays the process' own.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT))


def return_freed_memory() -> bool:
    """Give the kernel what this process keeps and does not use; False where that cannot be said.

    At the end of a training or of a store: the next one makes tensors of other sizes, which would come beside what the
    last one left.
    """
    # What knows itself by a detour goes when it is collected.
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    return bool(trim(0))
