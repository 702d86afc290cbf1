"""Limits as messages: no memory left, a file that is too large, a Rust library that panicked."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from polydistill.disk import file_limit, is_file_limit
from polydistill.errors import MemoryLimitError, TokenizerError, UserError

# Messages of the allocators of PyTorch, CUDA, C++, threads and the dynamic loader.
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
    """Whether a Rust library has panicked. The class is no subclass of Exception and cannot be imported."""
    kind = type(error)
    return kind.__module__ == "pyo3_runtime" and kind.__name__ == "PanicException"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that this process is out of memory; allocators report it only as text."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and any(sign in str(error) for sign in _NO_MEMORY)
    )


def explained(error: BaseException) -> UserError | None:
    """The UserError for an exception that means a limit; None for any other."""
    message = " ".join(str(error).split())[:160] or type(error).__name__
    if is_panic(error):
        return TokenizerError(
            "tokenizer",
            None,
            f"the library `tokenizers` failed on a text ({message})",
            "a model's tokenizer.json has a regular expression or a map that it cannot use: save that "
            "tokenizer again, or name another in its `tokenizer`",
        )
    if is_out_of_memory(error):
        return MemoryLimitError(
            "memory",
            None,
            f"there is no more for this process ({message})",
            "lower training.per_device_train_batch_size or a batch_tokens, raise the limit (ulimit -v), or "
            "use a larger machine; finished work is kept, and the same command resumes",
        )
    if isinstance(error, OSError) and is_file_limit(error):
        return file_limit(str(error.filename or "a file"))
    return None


@contextmanager
def explain_limits() -> Iterator[None]:
    """Turn an exception that means a limit into a UserError; pass on any other."""
    try:
        yield
    except BaseException as error:
        explanation = explained(error)
        if explanation is None:
            raise
        raise explanation from error
