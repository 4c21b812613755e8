"""Alias of `alarm_models.recipe.loader`, which scripts read recipes by."""

from alarm_models.recipe.loader import built_in_names, load_recipe, load_recipes

__all__ = ["built_in_names", "load_recipe", "load_recipes"]
