"""Recipes loaded, unloaded and reloaded while others are served."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import structlog

from alarm_models.errors import AlarmModelsError
from alarm_models.recipe import Recipe
from alarm_service.engine import Engine
from alarm_service.errors import Refused, ServiceError
from alarm_service.faults import shortened
from alarm_service.generations.generation import Generation
from alarm_service.recipe_sources import RecipeSources
from alarm_service.scheduling.life import stopping

__all__ = ["Change", "Keeper"]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Change:
    """What came of a change: the models that were loaded, kept and let go, by name."""

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    gone: tuple[str, ...]


class Keeper:
    """Changes what an engine serves, one change at a time.

    Whatever fails leaves all as it was, is logged, and raised as `Refused` or another
    `ServiceError`.
    """

    def __init__(self, engine: Engine, sources: RecipeSources) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        #: The recipes whose loading is under way or waits for its turn.
        self._loading: Counter[str] = Counter()
        self.sources = sources

    async def load(self, name: str) -> Change:
        """Serve one recipe more, after the others."""

        async def load(recipes: dict[str, Recipe]) -> None:
            source = self.sources.find(name)
            recipe = await asyncio.to_thread(self.sources.read, source)
            loading.append(recipe.name)
            self._loading[recipe.name] += 1
            if recipe.name in recipes:
                raise Refused(f"recipe {recipe.name!r} is served already: reload it")
            await self._engine.change([*recipes.values(), recipe])
            self.sources.note(recipe, source)

        loading = [name]
        self._loading[name] += 1
        try:
            return await self._changed("load", name, load, lambda: self.sources.find(name))
        finally:
            self._loading -= Counter(loading)

    async def unload(self, name: str) -> Change:
        """Serve a recipe no more; the next in line becomes the default where it was that."""

        async def unload(recipes: dict[str, Recipe]) -> None:
            self._engine.catalog.recipe(name)
            if len(recipes) == 1:
                raise Refused(f"{name!r} is the last recipe: load another first")
            await self._engine.change([one for one in recipes.values() if one.name != name])

        return await self._changed("unload", name, unload, lambda: self._require_known(name))

    async def reload(self, name: str | None = None) -> Change:
        """Read one recipe again, or all, and their models where files of theirs changed."""

        async def reload(recipes: dict[str, Recipe]) -> None:
            names = list(recipes) if name is None else [self._engine.catalog.recipe(name).name]
            again = {one: await self._read_again(recipes[one]) for one in names}
            await self._engine.change(list((recipes | again).values()), read_again=names)

        return await self._changed(
            "reload", name or "all", reload, lambda: self._require_known(name)
        )

    def _require_known(self, name: str | None) -> None:
        """Raise `NotFound` for a recipe that is neither served nor about to be."""
        if name not in self._loading:
            self._engine.catalog.recipe(name)

    async def _read_again(self, recipe: Recipe) -> Recipe:
        return await asyncio.to_thread(self.sources.read_again, recipe)

    async def _changed(
        self,
        change: str,
        name: str,
        make: Callable[[dict[str, Recipe]], Awaitable[None]],
        check: Callable[[], object],
    ) -> Change:
        """Make a change in its turn; ``check`` raises at once where the name is unknown."""
        try:
            check()
            return await self._before_the_end(self._in_turn(change, name, make))
        except ServiceError as error:
            self._refused(change, name, error.message)
            raise
        except AlarmModelsError as error:
            self._refused(change, name, str(error))
            raise Refused(str(error)) from error
        except Exception as error:  # a checkpoint can fail in any way; the others go on
            _log.exception("loading failed")
            message = f"the models cannot be loaded: {error!r}"[:500]
            self._refused(change, name, message)
            raise Refused(message) from error

    async def _in_turn(
        self, change: str, name: str, make: Callable[[dict[str, Recipe]], Awaitable[None]]
    ) -> Change:
        async with self._turn:
            await self._engine.life.until_ready()
            before = self._engine.generation
            await make(dict(before.catalog.recipes))
            made = _change(before, self._engine.generation)
            now = self._engine.generation.fingerprints()
            is_same = not made.loaded and not made.gone and before.fingerprints() == now
            outcome = "unchanged" if is_same else "changed"
            self._engine.metrics.changes.came_to(change, outcome)
            _log.info(f"recipes {outcome}", change=change, name=name, now=now, **asdict(made))
            return made

    async def _before_the_end(self, work: Awaitable[Change]) -> Change:
        """Do the work, unless the server stops first: nobody waits then for models to load."""
        working = asyncio.ensure_future(work)
        ending = asyncio.ensure_future(self._engine.life.until_draining())
        try:
            await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise stopping()
            return working.result()
        finally:
            working.cancel()
            ending.cancel()

    def _refused(self, change: str, name: str, why: str) -> None:
        self._engine.metrics.changes.came_to(change, "refused")
        _log.error("recipes not changed", change=change, name=shortened(name), error=why)


def _change(before: Generation, after: Generation) -> Change:
    known = {id(loaded.model) for loaded in before.models.values()}
    now = {id(loaded.model) for loaded in after.models.values()}
    return Change(
        tuple(key for key, one in after.models.items() if id(one.model) not in known),
        tuple(key for key, one in after.models.items() if id(one.model) in known),
        tuple(key for key, one in before.models.items() if id(one.model) not in now),
    )
