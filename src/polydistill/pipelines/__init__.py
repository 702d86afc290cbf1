"""Pipelines, one for each kind of recipe, on shared stages. These functions are the Python API."""

from polydistill.pipelines.demo import run_demo
from polydistill.pipelines.pipeline import run_recipe
from polydistill.pipelines.plan import plan_recipe
from polydistill.pipelines.profile import print_profile, profile_recipe

__all__ = ["plan_recipe", "print_profile", "profile_recipe", "run_demo", "run_recipe"]
