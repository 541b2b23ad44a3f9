"""From a recipe to a record: one visible loop for CPU and GPU. Chapters 2, 4 and 6 train with it."""

from repro.training.loop import train
from repro.training.recipe import Recipe, list_recipes, load_recipe

__all__ = ["Recipe", "list_recipes", "load_recipe", "train"]
