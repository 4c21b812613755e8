"""The routes as a Ray Serve ingress, which a RayService's ``import_path`` names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from ray import serve

from alarm_models.recipe.loader import load_recipes
from alarm_service.api.app import create_app
from alarm_service.engine.engine import RewardEngine
from alarm_service.observability.logging import set_up_logs
from alarm_service.preflight import require_safe_exposure
from alarm_service.ray.model import RayModelLoader
from alarm_service.settings import Settings, with_models

__all__ = ["Ingress", "build"]


class Ingress:
    """The application, of which each replica of this deployment has one.

    A replica takes requests once every model has run: in a rolling update the old ones serve until
    then. Settings that are not given come from the replica's own environment; keys do best.
    """

    def __init__(self, options: Mapping[str, Any], generation: str) -> None:
        self._options = options
        self._generation = generation

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Make the application in the replica."""
        settings = with_models(Settings(**{"host": "0.0.0.0", **self._options}))  # noqa: S104  # Serve's proxies
        require_safe_exposure(settings)
        set_up_logs(settings.log_level)
        recipes = load_recipes(settings.recipe, settings.set)
        load = RayModelLoader(settings, generation=self._generation)
        return until_ready(create_app(recipes, settings, load=load))


def until_ready(app: FastAPI) -> FastAPI:
    """Have the application's start wait for its models, and fail where they cannot be loaded."""
    engine: RewardEngine = app.state.engine
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def waiting(app: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(app) as state:
            await engine.life.until_ready()
            yield state

    app.router.lifespan_context = waiting
    return app


def build(options: Mapping[str, Any]) -> Any:
    """Return the Serve application; ``options`` are settings by their names.

    Each build has models of its own, so that a changed recipe, or the same with other weights, is
    loaded beside the old one, which goes when the last replica that serves it has drained.
    """
    # An unknown name or an invalid value is refused before anything starts.
    settings = with_models(Settings(**options))
    deployment = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        max_ongoing_requests=4096,
        max_surge_percent=100,  # no old replica goes before a new one takes requests
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    return deployment.bind(dict(options), uuid4().hex[:12])
