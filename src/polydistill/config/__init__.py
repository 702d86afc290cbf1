"""Recipes: their settings, and how they are read."""

from polydistill.config.balance import BalanceRecipe
from polydistill.config.extract import ExtractRecipe
from polydistill.config.finetune import FinetuneRecipe
from polydistill.config.grid import GridRecipe
from polydistill.config.load import AnyRecipe, load_recipe, parse_recipe, presets
from polydistill.config.merge import MergeRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.probe import ProbeRecipe

__all__ = [
    "AnyRecipe",
    "BalanceRecipe",
    "ExtractRecipe",
    "FinetuneRecipe",
    "GridRecipe",
    "MergeRecipe",
    "PretrainRecipe",
    "ProbeRecipe",
    "load_recipe",
    "parse_recipe",
    "presets",
]
