"""Recipes: settings and loading."""

from polydistill.config.balance import BalanceRecipe
from polydistill.config.extract import ExtractRecipe
from polydistill.config.finetune import FinetuneRecipe
from polydistill.config.grid import GridRecipe
from polydistill.config.load import load_recipe, parse_recipe, presets
from polydistill.config.merge import MergeRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.probe import ProbeRecipe
from polydistill.config.shared import RunRecipe

__all__ = [
    "BalanceRecipe",
    "ExtractRecipe",
    "FinetuneRecipe",
    "GridRecipe",
    "MergeRecipe",
    "PretrainRecipe",
    "ProbeRecipe",
    "RunRecipe",
    "load_recipe",
    "parse_recipe",
    "presets",
]
