"""Admin routes, which load, unload and reload recipes, sleep and wake; they need an admin key."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from alarm_models.recipe.schema import Overrides
from alarm_service.api.deps import EngineOf, documented
from alarm_service.engine.model_set import ModelSet
from alarm_service.engine.recipe_manager import RecipeChange, RecipeManager
from alarm_service.schemas import FewUnknown, Text

__all__ = ["router"]

_KEY_ERRORS = (
    (401, "no admin key; callers' keys are not accepted here"),
    (403, "the server has no admin key; the message says how to set one"),
)
_READ_ERRORS = documented(*_KEY_ERRORS)
_BODY_ERRORS = (
    (400, "the body is not JSON, or does not match its Content-Digest"),
    (408, "the body did not arrive in time"),
    (413, "the body is over the limit"),
)
_CHANGE_ERRORS = documented(
    *_KEY_ERRORS,
    *_BODY_ERRORS,
    (404, "no such recipe"),
    (409, "the change is not possible; nothing was changed; the message says why"),
    (422, "the request does not fit the schema"),
    (503, "the server is broken, sleeping or stopping"),
)
_SLEEP_ERRORS = documented(
    *_KEY_ERRORS,
    *_BODY_ERRORS,
    (409, "the models cannot be loaded; the message says why"),
    (503, "the server is broken or stopping"),
)


class _Shape(FewUnknown):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OneRecipe(_Shape):
    """A recipe by its name."""

    recipe: Text = Field(description="a name, never a path", examples=["mini"])


class AnyRecipe(_Shape):
    """A recipe by its name, or all."""

    recipe: Text | None = Field(default=None, description="by default all", examples=["mini"])


class AdminModelOut(BaseModel):
    """A loaded model."""

    name: str = Field(description="what it is called at /score")
    fingerprint: str
    loaded_at: datetime


class AdminRecipeOut(BaseModel):
    """A served recipe, and its models by the names that the recipe gives them."""

    name: str
    fingerprint: str
    models: dict[str, AdminModelOut]


class ServedOut(BaseModel):
    """The recipes served, the default first, and those that can be loaded by name."""

    recipes: list[AdminRecipeOut]
    available: list[str]


class ChangedOut(ServedOut):
    """The recipes served after a change, and the models it loaded, kept and released."""

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    gone: tuple[str, ...]


async def _manager(request: Request) -> RecipeManager:
    manager: RecipeManager = request.app.state.recipe_manager
    return manager


_ManagerOf = Annotated[RecipeManager, Depends(_manager)]

router = APIRouter(prefix="/admin", tags=["admin"])


@router.get("/recipes", responses=_READ_ERRORS)
async def recipes(manager: _ManagerOf, engine: EngineOf) -> ServedOut:
    """List the loaded and the available recipes; none is loaded before the server is ready."""
    return ServedOut(
        recipes=_recipes(engine.model_set), available=list(manager.sources.available())
    )


@router.post("/load", responses=_CHANGE_ERRORS)
async def load(body: OneRecipe, manager: _ManagerOf) -> ChangedOut:
    """Load a built-in recipe, or one of the operator's folder, in addition to those served."""
    return _changed(manager, await manager.load(body.recipe))


@router.post("/unload", responses=_CHANGE_ERRORS)
async def unload(body: OneRecipe, manager: _ManagerOf) -> ChangedOut:
    """Unload a recipe after its running requests; the last recipe cannot be unloaded."""
    return _changed(manager, await manager.unload(body.recipe))


@router.post("/reload", responses=_CHANGE_ERRORS)
async def reload(body: AnyRecipe, manager: _ManagerOf) -> ChangedOut:
    """Reload recipes and changed weights; no request fails, even if the reload does."""
    return _changed(manager, await manager.reload(body.recipe))


@router.post("/sleep", responses=_SLEEP_ERRORS)
async def sleep(manager: _ManagerOf) -> ChangedOut:
    """Release all models and their memory; return once running requests have ended.

    Until `/admin/wake`, scoring requests are 503 with `Retry-After`.
    """
    return _changed(manager, await manager.sleep())


@router.post("/wake", responses=_SLEEP_ERRORS)
async def wake(manager: _ManagerOf) -> ChangedOut:
    """Load the models of a sleeping server again; 409 if that fails, and it goes on sleeping."""
    return _changed(manager, await manager.wake())


def _changed(manager: RecipeManager, change: RecipeChange) -> ChangedOut:
    """Describe a change by its own result: another may have followed meanwhile."""
    return ChangedOut(
        recipes=_recipes(change.served),
        available=list(manager.sources.available()),
        loaded=change.loaded,
        kept=change.kept,
        gone=change.gone,
    )


def _recipes(model_set: ModelSet) -> list[AdminRecipeOut]:
    return [
        AdminRecipeOut(
            name=recipe.name,
            fingerprint=model_set.fingerprint(recipe, Overrides()),
            models={
                name: AdminModelOut(
                    name=loaded.name,
                    fingerprint=loaded.fingerprint,
                    loaded_at=datetime.fromtimestamp(loaded.since, UTC),
                )
                for name, loaded in model_set.models_of(recipe).items()
            },
        )
        for recipe in (model_set.catalog.recipes.values() if model_set.models else ())
    ]
