"""The exceptions that users meet.

PolydistillError
├── UserError            what the user can mend: one readable message, exit code 2
│   ├── RecipeError      a key, a value or a conflict in a recipe
│   ├── CorpusError      text that is missing, empty or unreadable
│   ├── TokenizerError   a tokenizer that lacks what a stage needs
│   ├── ModelError       a model that cannot be loaded, or is not what the recipe says
│   ├── StoreError       a store that is damaged, or was made from something else
│   ├── RunFolderError   a run's folder that belongs to another recipe, or is in use
│   ├── DiskError        no room, or no permission to write
│   ├── MemoryLimitError no memory left for this process
│   ├── ClusterError     a cluster that cannot be joined, or that loses workers again and again
│   └── NumericsError    NaN or infinity where a number must be
└── InternalError        our bug: a traceback and exit code 1

Every message gives the field, the value, why it is wrong and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# What the fields of messages are within: a run of a grid has fields of its own.
_PLACE: ContextVar[str] = ContextVar("place", default="")


@contextmanager
def within(place: str) -> Iterator[None]:
    """Errors that are made in this block name their fields within a place: `runs.one: training.max_steps`."""
    token = _PLACE.set(f"{_PLACE.get()}{place}: ")
    try:
        yield
    finally:
        _PLACE.reset(token)


class PolydistillError(Exception):
    """Root of the exceptions that polydistill raises on purpose."""


class UserError(PolydistillError):
    """Something that the user can mend.

    field   where it is: a recipe's path (`languages.sw.teachers[0]`), a file, an option
    value   what stands there
    reason  why it is wrong
    remedy  what to do
    """

    def __init__(self, field: str, value: object, reason: str, remedy: str) -> None:
        # Made anew from a pickle, it has its place already.
        field = field if field.startswith(_PLACE.get()) else f"{_PLACE.get()}{field}"
        self.field, self.value, self.reason, self.remedy = field, value, reason, remedy
        shown = "" if value is None else f" {value!r}" if isinstance(value, str) else f" {value}"
        super().__init__(f"{field}{shown}: {reason}; {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled by its message, of which the four could not be made again in another process.
        return type(self), (self.field, self.value, self.reason, self.remedy)


class RecipeError(UserError):
    """A recipe that cannot be run as it stands."""


class CorpusError(UserError):
    """Text that is missing, empty or unreadable."""


class TokenizerError(UserError):
    """A tokenizer that lacks what a stage needs."""


class ModelError(UserError):
    """A model that cannot be loaded, or is not what the recipe says."""


class StoreError(UserError):
    """A store that is damaged, or that was made from something else."""


class RunFolderError(UserError):
    """A run's folder that belongs to another recipe, or is in use."""


class DiskError(UserError):
    """No room left, or no permission to write."""


class MemoryLimitError(UserError):
    """No memory left for this process: of the machine, or by a limit on it."""


class ClusterError(UserError):
    """A cluster that cannot be joined, or that loses workers again and again."""


class NumericsError(UserError):
    """NaN or infinity where a number must be."""


class InternalError(PolydistillError):
    """A state that polydistill's own code should have made impossible."""
