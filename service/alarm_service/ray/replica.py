"""ModelReplica: the process that runs one model, and its Ray Serve deployment."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alarm_models.errors import SampleError
from alarm_models.process_tuning import disable_malloc_trim
from alarm_models.recipe.schema import HolisticSpec, Recipe
from alarm_models.types import Sample, Score
from alarm_service.api.app import create_engine
from alarm_service.engine.devices import ModelLoader
from alarm_service.engine.fair_queueing import INTERNAL, Caller
from alarm_service.engine.lifecycle import LifecycleState
from alarm_service.engine.model_set import ServedModel
from alarm_service.observability.logging import log_stream, set_up_logs
from alarm_service.ray.routing import QUEUED_TOKENS
from alarm_service.settings import Settings

__all__ = [
    "PREFIX",
    "DeploymentConfig",
    "ModelInfo",
    "ModelReplica",
    "ReplicaResources",
    "ReplicaScores",
    "application_of",
    "deployment_configs",
]

#: Prefix of the names of all models' applications.
PREFIX = "alarm-"

#: Admission control is done by the ingress: a replica accepts whatever was admitted there.
_NO_LIMIT = 1 << 60


#: Settings that stay in the ingress, above all keys; a recipe's `--set` may have some too.
_INGRESS_ONLY = {
    "api_key": (),
    "api_key_file": None,
    "admin_key": (),
    "admin_key_file": None,
    "recipe": (),
    "set": (),
    "recipe_dir": None,
}


@dataclass(frozen=True, slots=True)
class ReplicaResources:
    """A model's resources: from ``replicas`` to ``most`` replicas, by queued tokens."""

    replicas: int
    most: int
    queued_tokens: int
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True)
class DeploymentConfig:
    """One model's deployment: a recipe of that model alone, and its engine's settings.

    ``load`` lets tests pass stand-in models; it must be importable where replicas run.
    """

    name: str
    recipe: Recipe
    settings: Settings
    share: ReplicaResources
    load: ModelLoader | None = None


def deployment_configs(
    wanted: Mapping[str, ServedModel],
    settings: Settings,
    share: ReplicaResources,
    revision: str,
    load: ModelLoader | None = None,
) -> Mapping[str, DeploymentConfig]:
    """Return a deployment's configuration for each of the models that needs a device, by its key.

    Deployments of another revision have other names: both may exist at once.
    """
    unlimited = {"max_queued_tokens": _NO_LIMIT, "max_queue_s": 0}
    own = settings.model_copy(update=_INGRESS_ONLY | unlimited)
    return {
        key: DeploymentConfig(_name(revision, key), _recipe_of_one(served), own, share, load)
        for key, served in wanted.items()
        if served.spec.has_weights
    }


def _name(revision: str, key: str) -> str:
    return f"{PREFIX}{revision}-{re.sub(r'[^0-9A-Za-z]+', '-', key)}"


def _recipe_of_one(served: ServedModel) -> Recipe:
    """Return a recipe of one model, which only scores.

    It is not validated: a model of segments could not be a recipe's holistic one.
    """
    return Recipe.model_construct(
        name=served.recipe,
        models={served.name: served.spec},
        holistic=HolisticSpec(model=served.name),
        fields={name: field.pattern for name, field in served.fields.items()},
    )


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A replica's model: fingerprint, limits, device, and how it is read."""

    fingerprint: str
    limit: int | None
    dtype: str | None
    device: str
    read_token: str | None = None
    notes: tuple[str, ...] = ()
    execution: str | None = None


@dataclass(frozen=True, slots=True)
class ReplicaScores:
    """One outcome per sample, in order, and the fingerprint of the model."""

    fingerprint: str
    outcomes: Sequence[Score | SampleError]


class ModelReplica:
    """Scores samples with one model and its own engine."""

    async def __init__(self, plan: DeploymentConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        disable_malloc_trim()
        set_up_logs(plan.settings.log_level, log_stream(sys.stderr.fileno()))
        self._engine = create_engine([plan.recipe], plan.settings, plan.load)
        await self._engine.start()
        if self._engine.life.failure is not None:
            raise self._engine.life.failure
        self._model = self._engine.model_set.model(None).model

    def about(self) -> ModelInfo:
        """Describe the model."""
        return ModelInfo(
            self._model.fingerprint,
            self._model.limit,
            self._model.dtype,
            ",".join(map(str, self._engine.device_pool.devices)),
            read_token=getattr(self._model, "read_token", None),
            notes=getattr(self._model, "notes", ()),
            execution=getattr(self._model, "execution", None),
        )

    async def score(
        self,
        samples: Sequence[Sample],
        *,
        slot: int,
        num_tokens: int,
        num_passed: int,
        caller: Caller = INTERNAL,
    ) -> ReplicaScores:
        """Score a caller's samples; the other arguments are read by the router."""
        scores = await self._engine.score(None, samples, caller)
        return ReplicaScores(scores.fingerprint, scores.outcomes)

    def check_health(self) -> None:
        """Raise once the device is lost: Serve then replaces this replica."""
        if self._engine.life.state is LifecycleState.BROKEN:
            raise RuntimeError(self._engine.life.reason)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Report the queued tokens of this replica to the autoscaler."""
        return {QUEUED_TOKENS: float(self._engine.admission.num_queued)}

    async def __del__(self) -> None:
        """End the engine; Serve calls this once the replica has no more requests."""
        await self._engine.close()


#: A replica has its own queue and batching: Serve should send it every request.
_MAX_ONGOING = 4096

#: A first start may download tens of gigabytes; after this many failures a replica is given up.
_MAX_STARTS = 3


def application_of(plan: DeploymentConfig) -> Any:
    """Return the Serve application of one model."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    deployment = serve.deployment(
        ModelReplica,
        name="model",
        max_ongoing_requests=_MAX_ONGOING,
        max_constructor_retry_count=_MAX_STARTS,
        graceful_shutdown_timeout_s=plan.settings.drain_s,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": plan.share.num_cpus, "num_gpus": plan.share.num_gpus},
        request_router_config=RequestRouterConfig(
            request_router_class="alarm_service.ray.model.SlotRouter"
        ),
        **_num_replicas(plan.share),
    )
    return deployment.bind(plan)


def _num_replicas(share: ReplicaResources) -> dict[str, Any]:
    if share.most <= share.replicas:
        return {"num_replicas": share.replicas}
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    policy = AutoscalingPolicy(
        policy_function="alarm_service.ray.routing.ByQueuedTokens",
        policy_kwargs={"tokens_per_replica": share.queued_tokens},
    )
    scaling = AutoscalingConfig(min_replicas=share.replicas, max_replicas=share.most, policy=policy)
    return {"autoscaling_config": scaling}
