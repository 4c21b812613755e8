"""The FastAPI application: wires the engine, the routes and the middleware together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from opentelemetry.trace import NoOpTracer, Tracer
from starlette.middleware import Middleware
from starlette.types import Scope

from alarm_models.recipe.schema import Recipe
from alarm_service.api import admin_routes, page_routes, render_routes, routes, status_routes
from alarm_service.api.auth import (
    AllowedHostsMiddleware,
    APIKeyMiddleware,
    allowed_hosts,
)
from alarm_service.api.body_limit import BodyLimitMiddleware, ResponseDigestMiddleware
from alarm_service.api.compat import pooling as pooling_router
from alarm_service.api.compat import router as trainers_router
from alarm_service.api.error_handlers import add_error_handlers
from alarm_service.api.middleware import (
    AccessLogMiddleware,
    DrainMiddleware,
    HeadMiddleware,
    RequestIdMiddleware,
    TracingMiddleware,
    TrailingSlashMiddleware,
)
from alarm_service.api.off_loop_bodies import LargeBodies
from alarm_service.api.rate_limit import (
    RateLimiter,
    RateLimitMiddleware,
    body_tokens,
    one_request,
)
from alarm_service.api_keys import read_admin_keys, read_keys
from alarm_service.captures.capture import CaptureOptions, SampleCapture
from alarm_service.engine.devices import (
    ModelLoader,
    choose_devices,
    load_models,
    require_determinism,
    unchanged_on_disk,
)
from alarm_service.engine.engine import EngineLimits, RewardEngine
from alarm_service.engine.golden_check import check_golden_scores
from alarm_service.engine.model_set_builder import FindUnchanged
from alarm_service.engine.recipe_manager import RecipeManager, RecipeSources
from alarm_service.engine.rendering import Renderer
from alarm_service.observability.metrics import Metrics
from alarm_service.observability.tracing import TRACER_NAME, open_tracer_provider
from alarm_service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["API_ROUTES", "create_app", "create_engine"]

_ROUTERS = (
    routes.router,
    render_routes.router,
    status_routes.router,
    trainers_router.router,
    pooling_router.router,
    admin_routes.router,
)

#: Every route of the API; metrics and logs take their labels from these.
API_ROUTES = tuple(
    route for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)
)


def create_engine(
    recipes: Sequence[Recipe],
    settings: Settings,
    load: ModelLoader | None = None,
    unchanged: FindUnchanged | None = None,
    tracer: Tracer | None = None,
) -> RewardEngine:
    """Build the engine for these recipes; `RewardEngine.start` loads them."""
    if settings.deterministic:
        require_determinism()
    # A cached prefix may change the last bits of scores.
    num_bytes = 0 if settings.deterministic else settings.max_remembered_bytes
    limits = EngineLimits(
        settings.max_queued_tokens,
        settings.max_batch_tokens,
        settings.deterministic,
        settings.forward_timeout_s,
        settings.max_queue_s,
        settings.max_sample_chars,
        settings.max_group_bytes,
    )
    load = load or partial(load_models, max_remembered_bytes=num_bytes, dtype=settings.dtype)
    return RewardEngine(
        recipes,
        load,
        unchanged or partial(unchanged_on_disk, dtype=settings.dtype),
        check_golden_scores,
        choose_devices(settings.device),
        limits,
        Metrics(keeps_texts=settings.log_texts),
        tracer or NoOpTracer(),
    )


def create_app(
    recipes: Sequence[Recipe],
    settings: Settings,
    *,
    load: ModelLoader | None = None,
    unchanged: FindUnchanged | None = None,
    tracing: TracerProvider | None = None,
    sources: RecipeSources | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Build the application; its lifespan loads the models while requests already queue.

    ``load`` and ``unchanged`` let tests pass stand-in models, ``tracing`` a stand-in collector.
    ``sources`` has the sources from which recipes are reloaded; ``on_failure`` is called when
    loading fails.
    """

    tracing = tracing or open_tracer_provider(settings)
    tracer = tracing.get_tracer(TRACER_NAME) if tracing else None
    engine = create_engine(recipes, settings, load, unchanged, tracer)
    capture = _capture(engine, settings)
    off_loop_bodies = LargeBodies()
    renderer = Renderer(engine)
    sources = sources or RecipeSources({}, settings.set, settings.recipe_dir)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if capture is not None:
            capture.start()
        starting = asyncio.create_task(engine.start(waits_for_servers=True))
        starting.add_done_callback(lambda _: on_failure() if engine.life.failure else None)
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.wait((starting,))
            await engine.close()
            if capture is not None:
                await asyncio.to_thread(capture.close)
            if tracing is not None:
                tracing.shutdown()
            off_loop_bodies.close()
            renderer.close()

    app = FastAPI(
        title="ALaRM reward server",
        description="Hierarchical, dense rewards for reinforcement learning.",
        version=version("alarm-service"),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's own pages load scripts from other hosts
        redoc_url=None,
        middleware=_middleware(engine, settings, tracer),
        # Not `include_router`, which builds each route again, at the first request.
        routes=[route for router in _routers(settings) for route in router.routes],
    )
    app.state.engine = engine
    app.state.settings = settings
    app.state.off_loop_bodies = off_loop_bodies
    app.state.renderer = renderer
    app.state.recipe_manager = RecipeManager(engine, sources)
    add_error_handlers(app)
    return app


def _capture(engine: RewardEngine, settings: Settings) -> SampleCapture | None:
    """Let the engine capture what it answers, if the settings name a folder."""
    if settings.capture is None:
        return None
    options = CaptureOptions(
        settings.capture,
        settings.capture_max_bytes,
        settings.capture_share,
        settings.capture_hash_texts,
    )
    capture = SampleCapture(options, engine.metrics.captures)
    engine.capture = capture
    return capture


def _routers(settings: Settings) -> Sequence[APIRouter]:
    pages = [page_routes.docs_router, *([] if settings.no_page else [page_routes.page_router])]
    return (*_ROUTERS, *pages)


def _middleware(
    engine: RewardEngine, settings: Settings, tracer: Tracer | None
) -> list[Middleware]:
    keys, admin_keys = read_keys(settings), read_admin_keys(settings)
    before, after = settings.max_requests_per_minute, settings.max_tokens_per_minute
    hosts = allowed_hosts(settings)
    open_paths = frozenset() if settings.no_page else page_routes.PAGE_PATHS
    return [
        Middleware(RequestIdMiddleware),
        Middleware(TrailingSlashMiddleware),
        Middleware(AccessLogMiddleware, metrics=engine.metrics, routes=API_ROUTES),
        *([Middleware(TracingMiddleware, tracer=tracer)] if tracer else []),
        Middleware(ResponseDigestMiddleware),
        Middleware(DrainMiddleware, life=engine.life),
        Middleware(HeadMiddleware),
        *([Middleware(AllowedHostsMiddleware, hosts=hosts)] if hosts else []),
        Middleware(
            APIKeyMiddleware,
            keys=keys,
            admin_keys=admin_keys,
            open_paths=open_paths,
        ),
        *([_rate_limit(before, "requests", one_request, open_paths)] if before else []),
        Middleware(
            BodyLimitMiddleware,
            max_bytes=settings.max_body_bytes,
            timeout_s=settings.body_timeout_s,
        ),
        *([_rate_limit(after, "tokens", body_tokens, open_paths)] if after else []),
    ]


def _rate_limit(
    per_minute: int, thing: str, cost: Callable[[Scope], float], open_paths: frozenset[str]
) -> Middleware:
    return Middleware(
        RateLimitMiddleware,
        limits=RateLimiter(per_minute, thing, time.monotonic),
        cost=cost,
        open_paths=open_paths,
    )
