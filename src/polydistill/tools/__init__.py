"""Commands on models and runs: trim, export, inspect, compare, cost, init.

Names are imported when they are first used: `init` needs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polydistill.tools.compare import compare_runs
    from polydistill.tools.cost import print_cost
    from polydistill.tools.crossing import inspect_crossing, learn_vocabulary
    from polydistill.tools.export import Latency, export_model
    from polydistill.tools.init import write_first_recipe
    from polydistill.tools.inspect import inspect_store, inspect_vocabulary, unite_models
    from polydistill.tools.push import push_model
    from polydistill.tools.trim import trim_vocabulary
    from polydistill.tools.verify import verify_run, verify_stores

_MODULES = {
    "compare_runs": "compare",
    "print_cost": "cost",
    "inspect_crossing": "crossing",
    "learn_vocabulary": "crossing",
    "Latency": "export",
    "export_model": "export",
    "write_first_recipe": "init",
    "inspect_store": "inspect",
    "inspect_vocabulary": "inspect",
    "unite_models": "inspect",
    "push_model": "push",
    "trim_vocabulary": "trim",
    "verify_run": "verify",
    "verify_stores": "verify",
}

__all__ = [
    "Latency",
    "compare_runs",
    "export_model",
    "inspect_crossing",
    "inspect_store",
    "inspect_vocabulary",
    "learn_vocabulary",
    "print_cost",
    "push_model",
    "trim_vocabulary",
    "unite_models",
    "verify_run",
    "verify_stores",
    "write_first_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
