"""From what is to be served to models on a cluster, and to those that need none in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import ray
import torch
from ray import serve

from alarm_models.rewards import Loader, Model
from alarm_service.catalog import ServedModel
from alarm_service.ray.hold import Hold
from alarm_service.ray.model import RayModel
from alarm_service.ray.plan import Share, plans
from alarm_service.scheduling.replicas import Load
from alarm_service.settings import Settings

__all__ = ["RayLoad", "connect"]


class RayLoad:
    """Deploys each model that needs a device; checks and remote models stay in this process.

    Wants to be connected. Each load deploys anew, so that models are changed by loading, serving
    and then closing the old ones. ``generation`` names the first load's deployments, which
    ingresses of one generation share.
    """

    def __init__(
        self, settings: Settings, *, generation: str | None = None, load: Load | None = None
    ) -> None:
        self._settings = settings
        self._generation = generation
        self._load = load

    def __call__(
        self, wanted: Mapping[str, ServedModel], device: torch.device
    ) -> Mapping[str, Model]:
        """Load the others, then have deployments made; return before these have replicas."""
        generation, self._generation = self._generation or uuid4().hex[:12], None
        planned = plans(wanted, self._settings, _share(self._settings), generation, self._load)
        loader = Loader(device)
        models: dict[str, Model] = {
            key: loader.load(served.spec, served.fields)
            for key, served in wanted.items()
            if key not in planned
        }
        hold = Hold()
        for key, plan in planned.items():
            hold.take(plan)
            models[key] = RayModel(plan, hold)
        return {key: models[key] for key in wanted}


def connect(settings: Settings, http_options: Mapping[str, Any] | None = None) -> None:
    """Join the cluster of ``ray_address``, or start one of this machine's own.

    Without ``http_options`` no proxy is started: requests come through this process. A cluster
    where Serve runs keeps its proxies as they are.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
        ray.init(
            address=settings.ray_address,
            log_to_driver=settings.log_level == "debug",
            **({} if settings.ray_address else own),
        )
    if http_options is None:
        serve.start(proxy_location="Disabled")
    else:
        serve.start(proxy_location="HeadOnly", http_options=dict(http_options))


def _share(settings: Settings) -> Share:
    gpus = settings.gpus_per_replica
    if gpus is None:
        wants_gpu = settings.device.startswith("cuda") or (
            settings.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
        )
        gpus = float(wants_gpu)
    return Share(
        replicas=settings.replicas,
        most=settings.max_replicas or settings.replicas,
        queued_tokens=settings.queued_tokens_per_replica,
        num_cpus=settings.cpus_per_replica,
        num_gpus=gpus,
    )
