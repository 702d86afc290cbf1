"""Work for the processes of a pool: a module of its own, so that a worker imports nothing else."""

import os
import sys
from pathlib import Path

import pyarrow as pa

from polydistill.errors import CorpusError


def words(texts: list[str]) -> list[int]:
    """Words of each text."""
    return [len(text.split()) for text in texts]


def ends(shared: str, argument: str) -> bytes:
    """The argument; but `always` ends the process, and `once` does if the file `shared` is there."""
    mark = Path(shared)
    if argument == "always":
        os._exit(9)
    if argument == "once" and mark.is_file():
        mark.unlink()
        os._exit(9)
    return argument.encode()


def fails(shared: str, argument: str) -> bytes:
    """Fails as work on text does."""
    raise CorpusError("languages.x.text[0]", argument, "has no such field", "name it")


def modules(shared: object, argument: str) -> bytes:
    """What the process has imported of the packages that take a second, after an array was made."""
    pa.array([argument])
    heavy = ("pandas", "torch", "transformers", "datasets", "polydistill.config.merge")
    return ",".join(name for name in heavy if name in sys.modules).encode()
