"""Status routes: models and recipes, health, metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.reward_models.base import HostModel
from alarm_service.api.deps import EngineOf, SettingsOf, documented
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.lifecycle import LifecycleState
from alarm_service.engine.model_set import ServedModel
from alarm_service.observability.gaming import LIMITS
from alarm_service.observability.recent import KeptTexts
from alarm_service.schemas import (
    AdmissionOut,
    ErrorBody,
    GamingLimitsOut,
    GamingOut,
    HealthOut,
    HistogramOut,
    KeptSampleOut,
    LoadOut,
    ModelOut,
    ModelsOut,
    RecentOut,
    RecipeOut,
    UnwellOut,
)

__all__ = ["router"]

router = APIRouter()

_KEYED = documented((401, "no key, or a wrong one"))


@router.get("/models", responses=_KEYED)
async def models(engine: EngineOf, settings: SettingsOf) -> ModelsOut:
    """List the models and recipes that are served; the first recipe is the default."""
    return ModelsOut(
        models=[_model_out(engine, served) for served in engine.catalog.models.values()],
        recipes=[_recipe_out(engine, recipe) for recipe in engine.catalog.recipes.values()],
        limits={
            "max_samples": settings.max_samples,
            "max_body_bytes": settings.max_body_bytes,
            "max_queued_tokens": settings.max_queued_tokens,
        },
    )


@router.get(
    "/health/live",
    responses={503: {"model": UnwellOut, "description": "the process should be restarted"}},
)
async def live(engine: EngineOf, response: Response) -> HealthOut | UnwellOut:
    """Say whether the process works; 503 once the models or the device are lost."""
    return _health(engine, response, is_well=engine.life.state is not LifecycleState.BROKEN)


@router.get("/health/ready", responses={503: {"model": UnwellOut, "description": "not now"}})
async def ready(engine: EngineOf, response: Response) -> HealthOut | UnwellOut:
    """Say whether every model can score; 503 with the reason while loading, asleep or broken."""
    return _health(engine, response, is_well=engine.life.state is LifecycleState.READY)


@router.get(
    "/metrics",
    responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}, **_KEYED},
    response_class=Response,
)
async def metrics(engine: EngineOf) -> Response:
    """Return the metrics in Prometheus text."""
    await asyncio.to_thread(engine.metrics.rewards.refresh)  # takes milliseconds per recipe
    return Response(
        generate_latest(engine.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


@router.get(
    "/recent",
    responses=documented(
        (401, "no key, or a wrong one"), (404, "no such recipe"), (422, "the query cannot be read")
    ),
)
async def recent(engine: EngineOf, recipe: str | None = None) -> RecentOut:
    """Return statistics of the samples that a recipe rewarded recently, for the page."""
    known = engine.catalog.recipe(recipe)
    found = await asyncio.to_thread(engine.metrics.rewards.recent, known.name)
    figures = {**asdict(found.figures), "drift_up": found.drift_up, "drift_down": found.drift_down}
    return RecentOut(
        recipe=known.name,
        threshold=known.rule_params(Overrides()).threshold,
        since=found.since,
        rewards=found.rewards and HistogramOut.model_validate(found.rewards),
        holistic=found.holistic and HistogramOut.model_validate(found.holistic),
        points=list(found.points),
        admission=[AdmissionOut.model_validate(one) for one in found.admission],
        errors=dict(found.errors),
        gaming=GamingOut.model_validate(figures),
        limits=GamingLimitsOut.model_validate(LIMITS),
        best=_kept(found.best),
        worst=_kept(found.worst),
        load=_load(engine),
    )


def _kept(samples: Sequence[tuple[float, KeptTexts]] | None) -> list[KeptSampleOut] | None:
    if samples is None:
        return None
    return [
        KeptSampleOut(reward=reward, prompt=texts.prompt, completion=texts.completion)
        for reward, texts in samples
    ]


def _load(engine: RewardEngine) -> LoadOut:
    return LoadOut(
        time=time.time(),
        num_requests=engine.metrics.num_in_flight(),
        num_waiting_samples=engine.num_waiting,
        num_queued_tokens=engine.admission.num_queued,
        max_queued_tokens=engine.admission.max_tokens(),
        occupied_s=engine.metrics.occupied_s(),
        device_busy_s=engine.metrics.device_busy_s(),
    )


def _health(engine: RewardEngine, response: Response, *, is_well: bool) -> HealthOut | UnwellOut:
    status, reason = engine.life.state.value, engine.life.reason
    if is_well:
        return HealthOut(status=status, reason=reason)
    response.status_code = 503
    response.headers["Retry-After"] = "1"
    error = ErrorBody(code=status, message=reason, retryable=True)
    return UnwellOut(status=status, reason=reason, error=error)


def _model_out(engine: RewardEngine, served: ServedModel) -> ModelOut:
    loaded = engine.model_set.models.get(served.key)
    return ModelOut(
        name=served.key,
        recipe=served.recipe,
        kind=served.spec.kind,
        checkpoint=getattr(served.spec, "checkpoint", None) or None,
        fingerprint=loaded and loaded.fingerprint,
        device=_device(engine, served),
        deterministic=engine.limits.is_deterministic,
        limits={"max_tokens": loaded and loaded.model.limit},
        read_token=getattr(loaded and loaded.model, "read_token", None),
        notes=list(getattr(loaded and loaded.model, "notes", ())),
        execution=getattr(loaded and loaded.model, "execution", None),
    )


def _recipe_out(engine: RewardEngine, recipe: Recipe) -> RecipeOut:
    holistic = _model_out(engine, engine.catalog.model_of(recipe, recipe.holistic.model))
    model_set = engine.model_set
    params = recipe.rule_params(Overrides())
    return RecipeOut(
        name=recipe.name,
        recipe=recipe.name,
        kind="recipe",
        checkpoint=holistic.checkpoint,
        fingerprint=model_set.fingerprint(recipe, Overrides()) if model_set.models else None,
        device=_devices(engine) if holistic.device == "none" else holistic.device,
        deterministic=engine.limits.is_deterministic,
        limits=holistic.limits,
        read_token=holistic.read_token,
        notes=holistic.notes,
        execution=holistic.execution,
        description=recipe.description,
        rule=params.rule,
        threshold=params.threshold,
        holistic_weight=params.holistic_weight,
        weights=dict(params.weights),
        shapings={name: aspect.shaping for name, aspect in recipe.aspects.items()},
        holistic=recipe.holistic.model,
        aspects={name: aspect.model for name, aspect in recipe.aspects.items()},
    )


def _device(engine: RewardEngine, served: ServedModel) -> str:
    loaded = engine.model_set.models.get(served.key)
    if loaded is not None and isinstance(loaded.model, HostModel):
        return loaded.model.device
    return _devices(engine) if served.spec.has_weights else "none"


def _devices(engine: RewardEngine) -> str:
    return ",".join(map(str, engine.device_pool.devices))
