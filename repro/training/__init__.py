"""From a recipe to a record: one visible loop for CPU and GPU. Chapters 2 and 4 to 9 train with it."""

from repro.training.optim import SGD2012
from repro.training.recipe import Recipe, list_recipes, load_recipe
from repro.training.run import train

__all__ = ["SGD2012", "Recipe", "list_recipes", "load_recipe", "train"]
