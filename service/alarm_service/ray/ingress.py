"""The application as a Ray Serve ingress, for a RayService's ``import_path``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import RayServeException

from alarm_models.recipe.loader import load_recipes
from alarm_service.api.app import create_app
from alarm_service.engine.engine import RewardEngine
from alarm_service.observability.logging import set_up_logs
from alarm_service.preflight import require_safe_exposure
from alarm_service.ray.capacity import max_replicas
from alarm_service.ray.model import RayModelLoader
from alarm_service.settings import Settings, with_models

__all__ = ["Ingress", "build"]


class Ingress:
    """Ray Serve deployment whose replicas each run the application.

    A replica takes requests once every model is warmed up; in a rolling update the old replicas
    serve until then. Unset settings, such as keys, are read from the replica's environment.
    """

    def __init__(self, options: Mapping[str, Any], revision: str) -> None:
        self._options = options
        self._revision = revision

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the application in the replica."""
        settings = with_models(Settings(**{"host": "0.0.0.0", **self._options}))  # noqa: S104  # Serve's proxies
        require_safe_exposure(settings)
        set_up_logs(settings.log_level)
        recipes = load_recipes(settings.recipe, settings.set)
        load = RayModelLoader(settings, revision=self._revision)
        app = create_app(recipes, settings, load=load)
        engine: RewardEngine = app.state.engine
        engine.groups.set_num_servers(_num_ingress_replicas())
        return until_ready(app)


def _num_ingress_replicas() -> int:
    """Return how many ingress replicas there may be; 1 where Serve does not say.

    Serve has no public name for a deployment's configuration. Without it, a partial group waits for
    its timeout instead of being refused at once.
    """
    try:
        context = serve.get_replica_context()
    except RayServeException:
        return 1
    return max_replicas(getattr(context, "_deployment_config", None))


def until_ready(app: FastAPI) -> FastAPI:
    """Make the application's startup wait for its models, and fail if they fail to load."""
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

    Each build has its own deployments of models: a changed recipe, or the same with other weights,
    is loaded in addition to the old one, which is deleted once its last replica has drained.
    """
    # An unknown name or an invalid value is refused before anything starts.
    settings = with_models(Settings(**options))
    deployment = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        max_ongoing_requests=4096,
        max_surge_percent=100,  # no old replica stops before a new one is ready
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    return deployment.bind(dict(options), uuid4().hex[:12])
