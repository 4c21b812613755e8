"""RecipeManager: hot reload (load, unload, reload), sleep and wake; where recipes are found."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from alarm_models.errors import AlarmModelsError, quoted
from alarm_models.recipe.loader import built_in_names, load_recipe_again
from alarm_models.recipe.schema import Recipe
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.lifecycle import draining_error
from alarm_service.engine.model_set import ModelSet
from alarm_service.errors import ChangeRefused, NotFound, ServiceError, shortened
from alarm_service.settings import SettingsError

__all__ = ["RecipeChange", "RecipeManager", "RecipeSources"]


class RecipeSources:
    """Finds recipes by name and reads them, ``--set`` settings applied.

    A name is looked up among the built-in recipes and those of the operator's folder; it is never
    used as a path. ``known`` maps the recipes that are already served to their sources.
    """

    def __init__(
        self, known: Mapping[str, str], settings: Sequence[str], folder: Path | None
    ) -> None:
        if folder is not None and not folder.is_dir():
            raise SettingsError(f"--recipe-dir {folder} is not a folder")
        self._known = dict(known)
        self._settings = settings
        self._folder = folder

    def available(self) -> dict[str, str]:
        """Return the recipes that can be loaded: names with their file or built-in name."""
        files = [] if self._folder is None else sorted(self._folder.glob("*.toml"))
        return {name: name for name in built_in_names()} | {file.stem: str(file) for file in files}

    def find(self, name: str) -> str:
        """Return the source of an available recipe; raise `NotFound` or `ChangeRefused`."""
        available = self.available()
        if name not in available:
            more = "" if self._folder else "; --recipe-dir FOLDER adds a folder's"
            raise NotFound(
                f"no recipe {quoted(name)} to load; available: {', '.join(available)}{more}"
            )
        if name in built_in_names() and available[name] != name:
            raise ChangeRefused(f"{name!r} is built in and in {self._folder}: rename that file")
        return available[name]

    def read(self, source: str) -> Recipe:
        """Read a recipe from its source; raise `RecipeError`."""
        return load_recipe_again(source, self._settings)

    def note(self, recipe: Recipe, source: str) -> None:
        """Set the source of a served recipe."""
        self._known[recipe.name] = source

    def read_again(self, recipe: Recipe) -> Recipe:
        """Read a recipe's file again; a recipe without a file is returned unchanged.

        Raises `RecipeError`, or `ChangeRefused` if the recipe now has another name.
        """
        source = self._known.get(recipe.name)
        if source is None:
            return recipe
        again = load_recipe_again(source, self._settings, recipe)
        if again.name != recipe.name:
            raise ChangeRefused(
                f"{source} now names its recipe {again.name!r}, but callers know it as "
                f"{recipe.name!r}: load the new name, and unload the old"
            )
        return again


_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RecipeChange:
    """The models that a change loaded, kept and released, by name; ``served`` is its result."""

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    gone: tuple[str, ...]
    served: ModelSet


#: Changes that a sleeping server accepts.
_WHILE_SLEEPING = ("sleep", "wake")


class RecipeManager:
    """Changes the recipes that an engine serves, one change at a time.

    A failed change has no effect; it is logged, and raised as `ChangeRefused` or another
    `ServiceError`.
    """

    def __init__(self, engine: RewardEngine, sources: RecipeSources) -> None:
        self._engine = engine
        self._lock = asyncio.Lock()
        #: The recipes that are being loaded or waiting to be loaded.
        self._loading: Counter[str] = Counter()
        self.sources = sources

    async def load(self, name: str) -> RecipeChange:
        """Load one more recipe; it is served in addition to the others."""

        async def load(recipes: dict[str, Recipe]) -> None:
            source = self.sources.find(name)
            recipe = await asyncio.to_thread(self.sources.read, source)
            loading.append(recipe.name)
            self._loading[recipe.name] += 1
            if recipe.name in recipes:
                raise ChangeRefused(f"recipe {recipe.name!r} is served already: reload it")
            await self._engine.change([*recipes.values(), recipe])
            self.sources.note(recipe, source)

        loading = [name]
        self._loading[name] += 1
        try:
            return await self._apply("load", name, load, lambda: self.sources.find(name))
        finally:
            self._loading -= Counter(loading)

    async def unload(self, name: str) -> RecipeChange:
        """Stop serving a recipe; if it was the default, the next one becomes the default."""

        async def unload(recipes: dict[str, Recipe]) -> None:
            self._engine.catalog.recipe(name)
            if len(recipes) == 1:
                raise ChangeRefused(f"{name!r} is the last recipe: load another first")
            await self._engine.change([one for one in recipes.values() if one.name != name])

        return await self._apply("unload", name, unload, lambda: self._require_known(name))

    async def reload(self, name: str | None = None) -> RecipeChange:
        """Reload one recipe, or all, and those of their models whose files changed."""

        async def reload(recipes: dict[str, Recipe]) -> None:
            names = list(recipes) if name is None else [self._engine.catalog.recipe(name).name]
            again = {one: await self._read_again(recipes[one]) for one in names}
            await self._engine.change(list((recipes | again).values()), read_again=names)

        return await self._apply("reload", name or "all", reload, lambda: self._require_known(name))

    async def sleep(self) -> RecipeChange:
        """Release all models once running requests have ended; new requests are refused."""

        async def sleep(_: dict[str, Recipe]) -> None:
            await self._engine.sleep()

        return await self._apply("sleep", "all", sleep, self._require_nothing)

    async def wake(self) -> RecipeChange:
        """Load the models of a sleeping server again; if one fails, it goes on sleeping."""

        async def wake(_: dict[str, Recipe]) -> None:
            if self._engine.life.is_sleeping:
                await self._engine.wake()

        return await self._apply("wake", "all", wake, self._require_nothing)

    def _require_nothing(self) -> None:
        """Sleep and wake name no recipe."""

    def _require_known(self, name: str | None) -> None:
        """Raise `NotFound` for a recipe that is neither served nor about to be."""
        if name not in self._loading:
            self._engine.catalog.recipe(name)

    async def _read_again(self, recipe: Recipe) -> Recipe:
        return await asyncio.to_thread(self.sources.read_again, recipe)

    async def _apply(
        self,
        change: str,
        name: str,
        make: Callable[[dict[str, Recipe]], Awaitable[None]],
        check: Callable[[], object],
    ) -> RecipeChange:
        """Make a change after earlier ones; ``check`` raises immediately for an unknown name."""
        try:
            check()
            return await self._abort_when_draining(self._serialized(change, name, make))
        except ServiceError as error:
            self._refused(change, name, error.message)
            raise
        except AlarmModelsError as error:
            self._refused(change, name, str(error))
            raise ChangeRefused(str(error)) from error
        except (
            Exception
        ) as error:  # checkpoints can raise any exception; the others are still served
            _log.exception("loading failed")
            message = f"the models cannot be loaded: {error!r}"[:500]
            self._refused(change, name, message)
            raise ChangeRefused(message) from error

    async def _serialized(
        self, change: str, name: str, make: Callable[[dict[str, Recipe]], Awaitable[None]]
    ) -> RecipeChange:
        async with self._lock:
            await self._engine.life.until_loaded()
            if change not in _WHILE_SLEEPING:
                self._engine.life.require_awake()
            before = self._engine.model_set
            await make(dict(before.catalog.recipes))
            recipe_change = _recipe_change(before, self._engine.model_set)
            now = self._engine.model_set.fingerprints()
            is_same = (
                not recipe_change.loaded and not recipe_change.gone and before.fingerprints() == now
            )
            outcome = "unchanged" if is_same else "changed"
            self._engine.metrics.changes.count_change(change, outcome)
            _log.info(
                f"recipes {outcome}",
                change=change,
                name=name,
                now=now,
                loaded=recipe_change.loaded,
                kept=recipe_change.kept,
                gone=recipe_change.gone,
            )
            return recipe_change

    async def _abort_when_draining(self, work: Awaitable[RecipeChange]) -> RecipeChange:
        """Await the work, unless the server drains first: shutdown does not wait for loading."""
        working = asyncio.ensure_future(work)
        ending = asyncio.ensure_future(self._engine.life.until_draining())
        try:
            await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise draining_error()
            return working.result()
        finally:
            working.cancel()
            ending.cancel()

    def _refused(self, change: str, name: str, why: str) -> None:
        self._engine.metrics.changes.count_change(change, "refused")
        _log.error("recipes not changed", change=change, name=shortened(name), error=why)


def _recipe_change(before: ModelSet, after: ModelSet) -> RecipeChange:
    known = {id(loaded.model) for loaded in before.models.values()}
    now = {id(loaded.model) for loaded in after.models.values()}
    return RecipeChange(
        tuple(key for key, one in after.models.items() if id(one.model) not in known),
        tuple(key for key, one in after.models.items() if id(one.model) in known),
        tuple(key for key, one in before.models.items() if id(one.model) not in now),
        after,
    )
