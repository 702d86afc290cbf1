"""Ends of what a process may have, and of what a library can do, as messages: no memory left, a file too large, a library
in Rust that gave up.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from polydistill.disk import file_limit, is_file_limit
from polydistill.errors import MemoryLimitError, TokenizerError, UserError

# How allocators say it: of PyTorch, of CUDA, of C++, of threads, of the loader of libraries.
_NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "std::bad_alloc",
    "Cannot allocate memory",
    "can't start new thread",
    "failed to map segment from shared object",
    "unable to mmap",
)


def is_panic(error: BaseException) -> bool:
    """Whether an exception says that a library in Rust has panicked. Its class is no Exception, and no module has it."""
    kind = type(error)
    return kind.__module__ == "pyo3_runtime" and kind.__name__ == "PanicException"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no more memory for this process; allocators say so in words only."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and any(sign in str(error) for sign in _NO_MEMORY)
    )


def explained(error: BaseException) -> UserError | None:
    """What to say of an exception that means a limit; None for any other."""
    told = " ".join(str(error).split())[:160] or type(error).__name__
    if is_panic(error):
        return TokenizerError(
            "tokenizer",
            None,
            f"the library `tokenizers` gave up on a text ({told})",
            "a model's tokenizer.json has a regular expression or a map that it cannot use: save that tokenizer anew, or name "
            "another in its `tokenizer`",
        )
    if is_out_of_memory(error):
        return MemoryLimitError(
            "memory",
            None,
            f"there is no more for this process ({told})",
            "lower training.per_device_train_batch_size or a batch_tokens, raise the limit (ulimit -v), or take a larger "
            "machine; what was whole stays, and the same command goes on",
        )
    if isinstance(error, OSError) and is_file_limit(error):
        return file_limit(str(error.filename or "a file"))
    return None


@contextmanager
def explain_limits() -> Iterator[None]:
    """Turn what means a limit into a UserError, and leave everything else as it is."""
    try:
        yield
    except BaseException as error:
        found = explained(error)
        if found is None:
            raise
        raise found from error
