"""Recipes: each composes the stages. These functions are the Python API and what the commands call."""

from polydistill.recipes.compare import compare_runs
from polydistill.recipes.cost import print_cost
from polydistill.recipes.demo import run_demo
from polydistill.recipes.export import Latency, export_model
from polydistill.recipes.inspect import (
    inspect_store,
    inspect_vocabulary,
    unite_models,
    verify_run,
    verify_stores,
)
from polydistill.recipes.plan import plan_recipe
from polydistill.recipes.profile import print_profile, profile_recipe
from polydistill.recipes.records import report_run
from polydistill.recipes.results import results_table
from polydistill.recipes.run import run_recipe
from polydistill.recipes.trim import trim_vocabulary
from polydistill.training import leads

__all__ = [
    "Latency", "compare_runs", "export_model", "inspect_store", "inspect_vocabulary", "leads", "plan_recipe",
    "print_cost", "print_profile", "profile_recipe", "report_run", "results_table", "run_demo", "run_recipe", "trim_vocabulary", "unite_models",
    "verify_run", "verify_stores",
]  # fmt: skip
