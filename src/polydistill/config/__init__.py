"""Recipes: their settings, and how they are read."""

from polydistill.config.load import load_recipe, parse_recipe, presets
from polydistill.config.models import AnyRecipe, MergeRecipe, PretrainRecipe, Source

__all__ = ["AnyRecipe", "MergeRecipe", "PretrainRecipe", "Source", "load_recipe", "parse_recipe", "presets"]
