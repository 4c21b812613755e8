"""The actor that removes deployments nobody serves, and this process's leases."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import ray
from ray import serve
from ray.exceptions import RayError

from alarm_service.ray.deployment import application_of
from alarm_service.ray.leases import Leases
from alarm_service.ray.replica import DeploymentConfig

__all__ = ["DeploymentLease", "lease_manager", "owner_liveness"]

_NAMESPACE = "alarm"


class LeaseManager:
    """Several ingresses may serve one deployment: it goes with the last of them.

    Who serves has a `Presence`, an actor that Ray ends with its owner: one that is killed gives
    back what it held.
    """

    def __init__(self) -> None:
        self._leases = Leases()
        self._watching: set[asyncio.Task[None]] = set()

    async def register(self, holder: str, presence: list[Any]) -> None:
        """Watch over a holder until it ends."""
        task = asyncio.create_task(self._watch(holder, presence[0]))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def take(self, name: str, holder: str) -> bool:
        """Note that a deployment is served; say whether it is to be made."""
        return self._leases.take(name, holder)

    async def release(self, name: str, holder: str) -> None:
        """Remove a deployment once its last holder has given it back."""
        if self._leases.release(name, holder):
            await asyncio.to_thread(serve.delete, name, _blocking=False)

    async def _watch(self, holder: str, presence: Any) -> None:
        try:
            await presence.wait_forever.remote()
        except RayError:  # it has ended, one way or the other
            for name in self._leases.held_by(holder):
                await self.release(name, holder)


class OwnerLiveness:
    """Is there for as long as its owner is."""

    async def wait_forever(self) -> None:
        """Wait, for as long as there is anything to wait in."""
        await asyncio.Event().wait()


def lease_manager() -> Any:
    """Return the cluster's keeper, which outlives whoever asks for it first."""
    options = {"name": "keeper", "namespace": _NAMESPACE, "lifetime": "detached"}
    actor = ray.remote(LeaseManager).options(
        **options, get_if_exists=True, num_cpus=0, max_restarts=-1
    )
    return actor.remote()


def owner_liveness() -> Any:
    """Return an actor that ends with this process."""
    return ray.remote(OwnerLiveness).options(num_cpus=0).remote()


class DeploymentLease:
    """Makes deployments that nobody has made, and gives back those that are served no longer."""

    def __init__(self) -> None:
        self._holder = uuid4().hex
        self._presence = owner_liveness()
        self._lease_manager = lease_manager()
        ray.get(self._lease_manager.register.remote(self._holder, [self._presence]))

    def take(self, plan: DeploymentConfig) -> None:
        """Have it deployed; blocks until Serve knows of it, not until it has replicas."""
        if ray.get(self._lease_manager.take.remote(plan.name, self._holder)):
            target = serve.RunTarget(application_of(plan), plan.name, route_prefix=None)
            serve.run_many([target], wait_for_applications_running=False)

    def release(self, name: str) -> None:
        """Serve it no longer; does not wait."""
        self._lease_manager.release.remote(name, self._holder)
