"""What is served from one change to the next: recipes, and their models loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alarm_models.recipe import Recipe
from alarm_models.recipe_tables import Overrides
from alarm_models.rewards import Model
from alarm_service.catalog import Catalog
from alarm_service.scheduling.loaded import Loaded

__all__ = ["Generation"]


@dataclass(frozen=True, eq=False, slots=True)
class Generation:
    """A catalog and its models by key. A request takes one, and finishes with it.

    Before the first models are there it has none.
    """

    catalog: Catalog
    models: Mapping[str, Loaded]

    @property
    def replicas(self) -> list[Model]:
        """Every model on every device; one that two generations share is in both."""
        return [model for loaded in self.models.values() for model in loaded.replicas]

    def model(self, name: str | None) -> Loaded:
        """Return the model of that name, else the default; raise `NotFound`."""
        return self.models[self.catalog.model(name).key]

    def model_of(self, recipe: Recipe, name: str) -> Loaded:
        """Return the model that a recipe calls by that name."""
        return self.models[self.catalog.model_of(recipe, name).key]

    def models_of(self, recipe: Recipe) -> dict[str, Loaded]:
        """Return a recipe's models by the recipe's names."""
        return {name: self.model_of(recipe, name) for name in recipe.models}

    def fingerprint(self, recipe: Recipe, overrides: Overrides) -> str:
        """Digest all that decides a recipe's rewards, with one request's overrides."""
        models = {name: model.fingerprint for name, model in self.models_of(recipe).items()}
        return recipe.fingerprint(models, overrides)

    def fingerprints(self) -> dict[str, str]:
        """Return each recipe's fingerprint; none before the models are there."""
        recipes = self.catalog.recipes.values() if self.models else ()
        return {recipe.name: self.fingerprint(recipe, Overrides()) for recipe in recipes}
