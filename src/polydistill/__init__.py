"""polydistill: merge, extract and balance multilingual masked language models by distillation.

import polydistill as pd

run = pd.run("mine.yaml")
model, tokenizer = run.load()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polydistill.version import __version__

if TYPE_CHECKING:
    from polydistill.api import FinishedRun, balance, embed, extract, merge, pretrain, run

__all__ = ["FinishedRun", "__version__", "balance", "embed", "extract", "merge", "pretrain", "run"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line tells what is wrong with a recipe without PyTorch.
    if name in __all__:
        return getattr(import_module("polydistill.api"), name)
    raise AttributeError(f"module 'polydistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
