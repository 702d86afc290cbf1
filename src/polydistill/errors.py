"""The exceptions that users see.

PolydistillError
├── UserError            what the user can fix: one readable message, exit code 2
│   ├── RecipeError      a key, a value or a conflict in a recipe
│   ├── CorpusError      text that is missing, empty or unreadable
│   ├── TokenizerError   a tokenizer that lacks what a stage needs
│   ├── ModelError       a model that cannot be loaded, or is not what the recipe says
│   ├── StoreError       a store that is damaged, or was made from other inputs
│   ├── RunFolderError   a run folder that belongs to another recipe, or is in use
│   ├── DiskError        no space, or no permission to write
│   ├── MemoryLimitError no memory left for this process
│   ├── ClusterError     a cluster that cannot be joined, or that keeps losing workers
│   └── NumericsError    NaN or infinity where a number must be
└── InternalError        our bug: a traceback and exit code 1

Every message names the field, the value, the reason and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Prefix of the fields in messages: each run of a grid has fields of its own.
_PLACE: ContextVar[str] = ContextVar("place", default="")


@contextmanager
def within(place: str) -> Iterator[None]:
    """Prefix the fields of errors created in this block with a place: `runs.one: training.max_steps`."""
    token = _PLACE.set(f"{_PLACE.get()}{place}: ")
    try:
        yield
    finally:
        _PLACE.reset(token)


class PolydistillError(Exception):
    """Base of the exceptions that polydistill raises on purpose."""


class UserError(PolydistillError):
    """Something that the user can fix.

    field   where it is: a recipe's path (`languages.sw.teachers[0]`), a file, an option
    value   the value there
    reason  why it is wrong
    remedy  what to do
    """

    def __init__(self, field: str, value: object, reason: str, remedy: str) -> None:
        # An unpickled error already has its prefix.
        field = field if field.startswith(_PLACE.get()) else f"{_PLACE.get()}{field}"
        self.field, self.value, self.reason, self.remedy = field, value, reason, remedy
        shown = "" if value is None else f" {value!r}" if isinstance(value, str) else f" {value}"
        super().__init__(f"{field}{shown}: {reason}; {remedy}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, object, str, str]]:
        # By default an exception is pickled as its message, from which the four cannot be restored.
        return type(self), (self.field, self.value, self.reason, self.remedy)


class RecipeError(UserError):
    """A recipe that cannot be run as it is."""


class CorpusError(UserError):
    """Text that is missing, empty or unreadable."""


class TokenizerError(UserError):
    """A tokenizer that lacks what a stage needs."""


class ModelError(UserError):
    """A model that cannot be loaded, or is not what the recipe says."""


class StoreError(UserError):
    """A store that is damaged, or was made from other inputs."""


class RunFolderError(UserError):
    """A run folder that belongs to another recipe, or is in use."""


class DiskError(UserError):
    """No space left, or no permission to write."""


class MemoryLimitError(UserError):
    """No memory left for this process: the machine has none, or a limit is reached."""


class ClusterError(UserError):
    """A cluster that cannot be joined, or that keeps losing workers."""


class NumericsError(UserError):
    """NaN or infinity where a number must be."""


class InternalError(PolydistillError):
    """A state that polydistill's own code should make impossible."""
