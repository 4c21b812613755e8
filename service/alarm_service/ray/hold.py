"""This process's hold on the deployments that it serves."""

from __future__ import annotations

from uuid import uuid4

import ray
from ray import serve

from alarm_service.ray.deploying import application_of
from alarm_service.ray.keeper import keeper, presence
from alarm_service.ray.plan import Plan

__all__ = ["Hold"]


class Hold:
    """Makes deployments that nobody has made, and gives back those that are served no longer."""

    def __init__(self) -> None:
        self._holder = uuid4().hex
        self._presence = presence()
        self._keeper = keeper()
        ray.get(self._keeper.welcome.remote(self._holder, [self._presence]))

    def take(self, plan: Plan) -> None:
        """Have it deployed; blocks until Serve knows of it, not until it has replicas."""
        if ray.get(self._keeper.take.remote(plan.name, self._holder)):
            target = serve.RunTarget(application_of(plan), plan.name, route_prefix=None)
            serve.run_many([target], wait_for_applications_running=False)

    def give_back(self, name: str) -> None:
        """Serve it no longer; does not wait."""
        self._keeper.give_back.remote(name, self._holder)
