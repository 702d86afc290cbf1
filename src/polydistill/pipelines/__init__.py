"""Pipelines, one for each kind of recipe, on shared stages. These functions are the Python API."""

from polydistill.pipelines.demo import run_demo
from polydistill.pipelines.kinds import PIPELINES
from polydistill.pipelines.pipeline import Command, Pipeline, Stage
from polydistill.pipelines.plan import plan_recipe
from polydistill.pipelines.profile import print_profile, profile_recipe
from polydistill.pipelines.run import run_recipe

__all__ = [
    "PIPELINES",
    "Command",
    "Pipeline",
    "Stage",
    "plan_recipe",
    "print_profile",
    "profile_recipe",
    "run_demo",
    "run_recipe",
]
