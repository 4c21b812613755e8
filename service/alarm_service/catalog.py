"""The recipes and models that a server serves, by the names callers use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alarm_models.errors import quoted
from alarm_models.recipe import Recipe
from alarm_models.specs import ModelSpec
from alarm_models.texts.template import FieldPattern
from alarm_service.errors import NotFound

__all__ = ["Catalog", "ServedModel"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A recipe's model under the key that the queue knows it by."""

    key: str
    name: str
    recipe: str
    spec: ModelSpec
    fields: Mapping[str, FieldPattern]


class Catalog:
    """Finds recipes and models by name.

    A model is served once for all recipes that say the same of it. Its bare name means the first
    recipe's; ``recipe/model`` means that recipe's.
    """

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self.recipes = {recipe.name: recipe for recipe in recipes}
        self.models: dict[str, ServedModel] = {}
        self._keys: dict[str, str] = {}
        for recipe in recipes:
            for name, spec in recipe.models.items():
                self._add(recipe, name, spec)

    @property
    def default_recipe(self) -> Recipe:
        """The recipe that requests mean which name none."""
        return next(iter(self.recipes.values()))

    def recipe(self, name: str | None) -> Recipe:
        """Return the recipe of that name; raise `NotFound` with the names there are."""
        if name is None:
            return self.default_recipe
        if name not in self.recipes:
            raise NotFound(f"no recipe {quoted(name)}; there are {', '.join(self.recipes)}")
        return self.recipes[name]

    def model(self, name: str | None) -> ServedModel:
        """Return the model of that name, else the default recipe's holistic model."""
        if name is None:
            return self.model_of(self.default_recipe, self.default_recipe.holistic.model)
        if name not in self._keys:
            raise NotFound(f"no model {quoted(name)}; there are {', '.join(self.models)}")
        return self.models[self._keys[name]]

    def model_of(self, recipe: Recipe, name: str) -> ServedModel:
        """Return the model that a recipe calls by that name."""
        return self.models[self._keys[f"{recipe.name}/{name}"]]

    def outputs_of(self, served: ServedModel) -> dict[str, str]:
        """Return the outputs of a model that recipes name, by the keys that name them."""
        named: dict[str, str] = {}
        for recipe in self.recipes.values():
            tables = {"holistic": recipe.holistic} | {
                f"aspects.{name}": aspect for name, aspect in recipe.aspects.items()
            }
            for key, table in tables.items():
                if table.output is not None and self.model_of(recipe, table.model) is served:
                    named[f"{recipe.name}: {key}.output"] = table.output
        return named

    def _add(self, recipe: Recipe, name: str, spec: ModelSpec) -> None:
        fields = recipe.field_patterns
        for served in self.models.values():
            if (served.name, served.spec, served.fields) == (name, spec, fields):
                self._keys[f"{recipe.name}/{name}"] = served.key
                return
        key = f"{recipe.name}/{name}" if name in self._keys else name
        self.models[key] = ServedModel(key, name, recipe.name, spec, fields)
        self._keys[f"{recipe.name}/{name}"] = key
        self._keys.setdefault(name, key)
