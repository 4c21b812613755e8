"""The application: engine, routes and middleware put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware

from alarm_models.recipe import Recipe
from alarm_service import routes, status_routes
from alarm_service.catalog import Catalog
from alarm_service.compat import pooling_router
from alarm_service.compat import router as trainers_router
from alarm_service.compat.labels import label_of
from alarm_service.devices import choose_devices, load_models, require_determinism
from alarm_service.engine import Engine, Limits
from alarm_service.metrics import Metrics
from alarm_service.middleware import AccessLog, BodyLimit, RequireKey
from alarm_service.replicas import Load
from alarm_service.responses import add_error_handlers
from alarm_service.settings import Settings

__all__ = ["create_app", "create_engine"]

_ROUTES = ("/score", "/hierarchical_reward", "/models", "/metrics", "/health/live", "/health/ready")


def create_engine(
    recipes: Sequence[Recipe], settings: Settings, load: Load | None = None
) -> Engine:
    """Make an engine for these recipes; it loads them once it is started."""
    if settings.deterministic:
        require_determinism()
    # What is remembered of prompts changes the last bits of what comes after.
    num_bytes = 0 if settings.deterministic else settings.max_remembered_bytes
    limits = Limits(settings.max_queued_tokens, settings.max_batch_tokens, settings.deterministic)
    load = load or partial(load_models, max_remembered_bytes=num_bytes)
    return Engine(Catalog(recipes), load, choose_devices(settings.device), limits, Metrics())


def create_app(
    recipes: Sequence[Recipe],
    settings: Settings,
    *,
    load: Load | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Make the application; its lifespan loads the models while requests may already come.

    ``load`` is the seam for stand-in models; ``on_failure`` is called when loading fails.
    """

    engine = create_engine(recipes, settings, load)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(engine.start())
        starting.add_done_callback(lambda _: on_failure() if engine.life.failure else None)
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.wait((starting,))
            await engine.close()

    key = settings.api_key
    app = FastAPI(
        title="ALaRM reward server",
        description="Hierarchical, dense rewards for reinforcement learning.",
        version=version("alarm-service"),
        lifespan=lifespan,
        middleware=[
            Middleware(AccessLog, metrics=engine.metrics, label=_label),
            *([Middleware(RequireKey, key=key.get_secret_value())] if key else []),
            Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
        ],
    )
    app.state.engine = engine
    app.state.settings = settings
    app.include_router(routes.router)
    app.include_router(status_routes.router)
    app.include_router(trainers_router.router)
    app.include_router(pooling_router.router)
    add_error_handlers(app)
    return app


def _label(path: str) -> str | None:
    return path if path in _ROUTES else label_of(path)
