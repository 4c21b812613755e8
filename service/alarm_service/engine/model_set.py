"""Catalog, LoadedModel and ModelSet: what is served now, by name; ModelSetHolder swaps it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from alarm_models.errors import quoted
from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.recipe.specs import CompareSpec, ModelSpec
from alarm_models.reward_models.base import HostModel, Model, RewardModel
from alarm_models.types import JudgeTotals
from alarm_service.errors import NotFound

__all__ = [
    "Catalog",
    "LoadedModel",
    "ModelSet",
    "ModelSetHolder",
    "ServedModel",
    "close_models",
    "compares_samples",
]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A recipe's model, under the key that identifies it in the queue."""

    key: str
    name: str
    recipe: str
    spec: ModelSpec
    fields: Mapping[str, FieldPattern]


def compares_samples(spec: ModelSpec) -> bool:
    """Return whether a sample's score depends on the other samples of its group."""
    return isinstance(spec, CompareSpec) and spec.compares_samples


class Catalog:
    """The served recipes and their models' specs, by name; it loads nothing.

    A model is loaded once for all recipes with the same spec. A bare name refers to the first
    recipe with such a model; ``recipe/model`` to that recipe's. ``models`` has each model once, by
    its key; ``by_name`` has them by all their names.
    """

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self.recipes = {recipe.name: recipe for recipe in recipes}
        self.models: dict[str, ServedModel] = {}
        self.by_name: dict[str, ServedModel] = {}
        for recipe in recipes:
            for name, spec in recipe.models.items():
                self._add(recipe, name, spec)

    @property
    def default_recipe(self) -> Recipe:
        """The recipe of requests that do not name one."""
        return next(iter(self.recipes.values()))

    def recipe(self, name: str | None) -> Recipe:
        """Return the recipe of that name; raise `NotFound` that lists the known names."""
        if name is None:
            return self.default_recipe
        if name not in self.recipes:
            raise NotFound(f"no recipe {quoted(name)}; there are {', '.join(self.recipes)}")
        return self.recipes[name]

    def model(self, name: str | None) -> ServedModel:
        """Return the model of that name, else the default recipe's holistic model."""
        if name is None:
            return self.model_of(self.default_recipe, self.default_recipe.holistic.model)
        if name not in self.by_name:
            raise NotFound(f"no model {quoted(name)}; there are {', '.join(self.models)}")
        return self.by_name[name]

    def model_of(self, recipe: Recipe, name: str) -> ServedModel:
        """Return the model with that name in a recipe."""
        return self.by_name[_full_name(recipe, name)]

    def outputs_of(self, served: ServedModel) -> dict[str, str]:
        """Return the outputs of a model that recipes use, by recipe key."""
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
        full_name, fields = _full_name(recipe, name), recipe.field_patterns
        for served in self.models.values():
            if (served.name, served.spec, served.fields) == (name, spec, fields):
                self.by_name[full_name] = served
                return
        key = full_name if name in self.by_name else name
        served = ServedModel(key, name, recipe.name, spec, fields)
        self.models[key] = self.by_name[full_name] = served
        self.by_name.setdefault(name, served)


def _full_name(recipe: Recipe, model: str) -> str:
    return f"{recipe.name}/{model}"


@dataclass(frozen=True, eq=False, slots=True)
class LoadedModel:
    """One loaded model; compared by identity, so that two of one name never mix.

    ``replicas`` has the model on each device, in order; a host model has one. ``budget`` is the
    measured token budget of its batches, if any; ``since`` the time when it was loaded, in seconds
    since the epoch.
    """

    served: ServedModel
    replicas: tuple[Model, ...]
    budget: int | None = None
    since: float = 0.0

    @property
    def name(self) -> str:
        """Its name in responses, logs and metrics."""
        return self.served.key

    @property
    def model(self) -> Model:
        """The first replica, which represents all of them."""
        return self.replicas[0]

    @property
    def fingerprint(self) -> str:
        """A digest of everything that determines its scores."""
        return self.model.fingerprint

    @property
    def pass_key(self) -> Hashable | None:
        """The key of models that can share a forward pass; None if it shares none."""
        keys = tuple(getattr(model, "pass_key", None) for model in self.replicas)
        return None if not keys or None in keys else keys

    @property
    def stateful(self) -> Hashable | None:
        """What forward passes change, which other models may share; None if nothing."""
        found = tuple(getattr(model, "stateful", None) for model in self.replicas)
        return found if any(one is not None for one in found) else None

    @property
    def hidden_size(self) -> int | None:
        """The hidden size of a network with full attention; None if unknown."""
        config = getattr(self.model, "config", None) if self.replicas else None
        if getattr(config, "sliding_window", None) or getattr(config, "attention_window", None):
            return None
        size = getattr(config, "hidden_size", None)
        return size if isinstance(size, int) else None

    def replica(self, index: int) -> RewardModel:
        """Return the replica on a device; raise `TypeError` for a host model."""
        model = self.replicas[index]
        if isinstance(model, HostModel):
            raise TypeError(f"model {self.name!r} runs on no device")
        return model


class ModelSet:
    """A catalog and its loaded models.

    A request uses one model set from start to end. It is empty until the first models are loaded,
    and while the server sleeps. ``models`` has each model once, by its key.
    """

    def __init__(self, catalog: Catalog, models: Mapping[str, LoadedModel]) -> None:
        self.catalog = catalog
        self.models = models
        #: Models by all their names.
        self._by_name = {
            name: models[served.key]
            for name, served in catalog.by_name.items()
            if served.key in models
        }

    @property
    def replicas(self) -> list[Model]:
        """Every model on every device; a model that two sets share is in both."""
        return [model for loaded in self.models.values() for model in loaded.replicas]

    def model(self, name: str | None) -> LoadedModel:
        """Return the model of that name, else the default; raise `NotFound`."""
        if name in self._by_name:
            return self._by_name[name]
        return self.models[self.catalog.model(name).key]

    def model_of(self, recipe: Recipe, name: str) -> LoadedModel:
        """Return the model with that name in a recipe."""
        return self._by_name[_full_name(recipe, name)]

    def models_of(self, recipe: Recipe) -> dict[str, LoadedModel]:
        """Return a recipe's models by their names in it."""
        return {name: self.model_of(recipe, name) for name in recipe.models}

    def fingerprint(self, recipe: Recipe, overrides: Overrides) -> str:
        """Digest everything that determines a recipe's rewards, overrides included."""
        models = {name: model.fingerprint for name, model in self.models_of(recipe).items()}
        return recipe.fingerprint(models, overrides)

    def fingerprints(self) -> dict[str, str]:
        """Return each recipe's fingerprint; empty before the models are loaded."""
        recipes = self.catalog.recipes.values() if self.models else ()
        return {recipe.name: self.fingerprint(recipe, Overrides()) for recipe in recipes}

    def judge_totals(self) -> dict[str, JudgeTotals]:
        """Return what the judges of models behind endpoints were asked, by the model's name."""
        totals = {
            loaded.name: loaded.model.judge_totals
            for loaded in self.models.values()
            if isinstance(loaded.model, HostModel)
        }
        return {name: one for name, one in totals.items() if one is not None}


class ModelSetHolder:
    """The current model set, and earlier ones until their last request has ended.

    Reference-counted, and used by the event loop alone. ``release`` runs in a thread after models
    were closed.
    """

    def __init__(self, first: ModelSet, release: Callable[[], None]) -> None:
        self.current = first
        self._release = release
        self._num_requests = {first: 0}
        self._closing: set[asyncio.Task[None]] = set()
        self._released = asyncio.Event()
        self._is_closed = False

    @contextmanager
    def acquire(self) -> Iterator[ModelSet]:
        """Keep the current model set from being released while the block runs."""
        model_set = self.current
        self._num_requests[model_set] += 1
        try:
            yield model_set
        finally:
            self._num_requests[model_set] -= 1
            self._release_unused()

    def swap(self, model_set: ModelSet) -> None:
        """Make this the current model set."""
        self.current = model_set
        self._num_requests[model_set] = 0
        self._release_unused()

    async def until_released(self) -> None:
        """Wait until no earlier model set is in use, and the memory of their models is free."""
        while len(self._num_requests) > 1:
            self._released.clear()
            await self._released.wait()
        await asyncio.gather(*self._closing)

    async def close(self) -> None:
        """Close the models of all model sets, including those in use; once."""
        if self._is_closed:
            return
        self._is_closed = True
        await asyncio.gather(*self._closing)
        models = {id(one): one for model_set in self._num_requests for one in model_set.replicas}
        await close_models(list(models.values()))

    def _release_unused(self) -> None:
        """Close the models that are in no set that is current or in use."""
        if self._is_closed:
            return
        unused = [
            model_set
            for model_set, num_requests in self._num_requests.items()
            if not num_requests and model_set is not self.current
        ]
        for model_set in unused:
            del self._num_requests[model_set]
        self._released.set()
        kept = {id(model) for model_set in self._num_requests for model in model_set.replicas}
        models = {id(one): one for model_set in unused for one in model_set.replicas}
        closed = [model for key, model in models.items() if key not in kept]
        if closed:
            task = asyncio.create_task(self._end(closed))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _end(self, models: list[Model]) -> None:
        await close_models(models)
        models.clear()
        await asyncio.to_thread(self._release)


async def close_models(models: Sequence[Model]) -> None:
    """Close host models at once; if one fails, the others are still closed."""

    async def close(model: HostModel) -> None:
        try:
            await model.close()
        except Exception as error:  # no request uses it any more
            _log.warning("closing a model failed", error=repr(error))

    await asyncio.gather(*(close(one) for one in models if isinstance(one, HostModel)))
