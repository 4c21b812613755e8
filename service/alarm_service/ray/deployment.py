"""From a plan to a deployment of Ray Serve."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from alarm_service.ray.replica import DeploymentConfig, ModelReplica, ReplicaResources

__all__ = ["application_of"]

#: A replica queues by itself, and batches what it has: it should have it all.
_MAX_ONGOING = 4096

#: A first start may fetch tens of gigabytes; a replica that fails thus often will not start.
_MAX_STARTS = 3


def application_of(plan: DeploymentConfig) -> Any:
    """Return the Serve application of one model."""
    deployment = serve.deployment(
        ModelReplica,
        name="model",
        max_ongoing_requests=_MAX_ONGOING,
        max_constructor_retry_count=_MAX_STARTS,
        graceful_shutdown_timeout_s=plan.settings.drain_s,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": plan.share.num_cpus, "num_gpus": plan.share.num_gpus},
        request_router_config=RequestRouterConfig(
            request_router_class="alarm_service.ray.router.SlotRouter"
        ),
        **_replicas(plan.share),
    )
    return deployment.bind(plan)


def _replicas(share: ReplicaResources) -> dict[str, Any]:
    if share.most <= share.replicas:
        return {"num_replicas": share.replicas}
    policy = AutoscalingPolicy(
        policy_function="alarm_service.ray.routing.ByQueuedTokens",
        policy_kwargs={"tokens_per_replica": share.queued_tokens},
    )
    scaling = AutoscalingConfig(min_replicas=share.replicas, max_replicas=share.most, policy=policy)
    return {"autoscaling_config": scaling}
