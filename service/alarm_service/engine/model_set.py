"""Catalog, LoadedModel and ModelSet: what is served right now, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from alarm_models.errors import quoted
from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.recipe.specs import ModelSpec
from alarm_models.reward_models.base import HostModel, Model, RewardModel
from alarm_service.errors import NotFound

__all__ = ["Catalog", "LoadedModel", "ModelSet", "ModelSetHolder", "ServedModel", "close_models"]

_log = structlog.get_logger()


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


@dataclass(frozen=True, eq=False, slots=True)
class LoadedModel:
    """One model, loaded; it is equal to none but itself, so that two of one name never mix.

    ``replicas`` are the model on each device, in their order; one that needs no device is there
    once. ``budget`` is the tokens of its batches where it was measured, ``since`` the time when it
    was loaded, in seconds of the epoch.
    """

    served: ServedModel
    replicas: tuple[Model, ...]
    budget: int | None = None
    since: float = 0.0

    @property
    def name(self) -> str:
        """What callers, logs and metrics call it."""
        return self.served.key

    @property
    def model(self) -> Model:
        """The first replica, which stands for all."""
        return self.replicas[0]

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides its scores."""
        return self.model.fingerprint

    @property
    def hidden_size(self) -> int | None:
        """The width of a network that attends to all of a sample; None where that is not known."""
        config = getattr(self.model, "config", None) if self.replicas else None
        if getattr(config, "sliding_window", None) or getattr(config, "attention_window", None):
            return None
        size = getattr(config, "hidden_size", None)
        return size if isinstance(size, int) else None

    def replica(self, index: int) -> RewardModel:
        """Return the replica on a device; raise `TypeError` where the model needs none."""
        model = self.replicas[index]
        if isinstance(model, HostModel):
            raise TypeError(f"model {self.name!r} runs on no device")
        return model


@dataclass(frozen=True, eq=False, slots=True)
class ModelSet:
    """A catalog and its models by key. A request takes one, and finishes with it.

    Before the first models are there it has none.
    """

    catalog: Catalog
    models: Mapping[str, LoadedModel]

    @property
    def replicas(self) -> list[Model]:
        """Every model on every device; one that two generations share is in both."""
        return [model for loaded in self.models.values() for model in loaded.replicas]

    def model(self, name: str | None) -> LoadedModel:
        """Return the model of that name, else the default; raise `NotFound`."""
        return self.models[self.catalog.model(name).key]

    def model_of(self, recipe: Recipe, name: str) -> LoadedModel:
        """Return the model that a recipe calls by that name."""
        return self.models[self.catalog.model_of(recipe, name).key]

    def models_of(self, recipe: Recipe) -> dict[str, LoadedModel]:
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


class ModelSetHolder:
    """Holds the generation that serves, and those before it until their last request has ended.

    All of it belongs to the event loop. ``forget`` is run in a thread once models are gone.
    """

    def __init__(self, first: ModelSet, forget: Callable[[], None]) -> None:
        self.current = first
        self._forget = forget
        self._num_requests = {first: 0}
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @contextmanager
    def acquire(self) -> Iterator[ModelSet]:
        """Hold the generation of now while the block runs, whatever follows it meanwhile."""
        generation = self.current
        self._num_requests[generation] += 1
        try:
            yield generation
        finally:
            self._num_requests[generation] -= 1
            self._release_unused()

    def swap(self, generation: ModelSet) -> None:
        """Serve this generation from now on."""
        self.current = generation
        self._num_requests[generation] = 0
        self._release_unused()

    async def close(self) -> None:
        """Close the models of all generations, whoever still holds one; once."""
        if self._is_closed:
            return
        self._is_closed = True
        await asyncio.gather(*self._closing)
        models = {id(one): one for generation in self._num_requests for one in generation.replicas}
        await close_models(list(models.values()))

    def _release_unused(self) -> None:
        """Close the models that no generation has which serves or has requests."""
        if self._is_closed:
            return
        gone = [
            generation
            for generation, num_requests in self._num_requests.items()
            if not num_requests and generation is not self.current
        ]
        for generation in gone:
            del self._num_requests[generation]
        kept = {id(model) for generation in self._num_requests for model in generation.replicas}
        models = {id(one): one for generation in gone for one in generation.replicas}
        closed = [model for key, model in models.items() if key not in kept]
        if closed:
            task = asyncio.create_task(self._end(closed))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _end(self, models: list[Model]) -> None:
        await close_models(models)
        models.clear()
        await asyncio.to_thread(self._forget)


async def close_models(models: Sequence[Model]) -> None:
    """Close those that have something to end; one that fails keeps no other from it."""
    for model in models:
        if isinstance(model, HostModel):
            try:
                await model.close()
            except Exception as error:  # it is gone for callers all the same
                _log.warning("a model did not close", error=repr(error))
