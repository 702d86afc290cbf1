"""Commands on models and runs: trim, export, inspect, compare, cost."""

from polydistill.tools.compare import compare_runs
from polydistill.tools.cost import print_cost
from polydistill.tools.export import Latency, export_model
from polydistill.tools.inspect import inspect_store, inspect_vocabulary, unite_models
from polydistill.tools.trim import trim_vocabulary
from polydistill.tools.verify import verify_run, verify_stores

__all__ = [
    "Latency",
    "compare_runs",
    "export_model",
    "inspect_store",
    "inspect_vocabulary",
    "print_cost",
    "trim_vocabulary",
    "unite_models",
    "verify_run",
    "verify_stores",
]
