"""Leases of deployments: a deployment without a lease is deleted.

mypy does not see the calls of Ray actors (``manager.take.remote(...)``): the tests in tests/cluster
run them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from alarm_service.ray.replica import DeploymentConfig, application_of

__all__ = ["DeploymentLease", "LeaseManager", "Leases", "lease_manager", "owner_liveness"]


@dataclass(slots=True)
class Leases:
    """Deployments by name, each with the holders that serve it."""

    _holders: dict[str, set[str]] = field(default_factory=dict)

    def take(self, name: str, holder: str) -> bool:
        """Add a holder of the name; return whether it is the first."""
        is_first = name not in self._holders
        self._holders.setdefault(name, set()).add(holder)
        return is_first

    def release(self, name: str, holder: str) -> bool:
        """Remove a holder of the name; return whether it was the last."""
        holders = self._holders.get(name, set())
        if holder not in holders:
            return False
        holders.discard(holder)
        if holders:
            return False
        del self._holders[name]
        return True

    def names_of(self, holder: str) -> list[str]:
        """Return the deployments that a holder leases."""
        return [name for name, holders in self._holders.items() if holder in holders]


class LeaseManager:
    """Counts the ingresses that lease a deployment, and deletes it with the last of them.

    Each has an `OwnerLiveness`, an actor that Ray ends with its owner: so the leases of one that
    is killed are released too.
    """

    def __init__(self) -> None:
        self._leases = Leases()
        self._watching: set[asyncio.Task[None]] = set()

    async def register(self, holder: str, liveness: list[Any]) -> None:
        """Release a holder's leases once its process ends."""
        task = asyncio.create_task(self._watch(holder, liveness[0]))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def take(self, name: str, holder: str) -> bool:
        """Add a holder of a deployment; return whether it is the first, which has to deploy it."""
        return self._leases.take(name, holder)

    async def release(self, name: str, holder: str) -> None:
        """Delete a deployment once its last holder has released it."""
        from ray import serve

        if self._leases.release(name, holder):
            await asyncio.to_thread(serve.delete, name, _blocking=False)

    async def _watch(self, holder: str, liveness: Any) -> None:
        from ray.exceptions import RayError

        try:
            await liveness.wait_forever.remote()
        except RayError:  # it has ended
            for name in self._leases.names_of(holder):
                await self.release(name, holder)


class OwnerLiveness:
    """An actor that lives as long as the process that started it."""

    async def wait_forever(self) -> None:
        """Wait until the actor ends."""
        await asyncio.Event().wait()


def lease_manager() -> Any:
    """Return the cluster's lease manager, which outlives the process that starts it."""
    import ray

    # Servers of an earlier version share it under this name.
    options = {"name": "keeper", "namespace": "alarm", "lifetime": "detached"}
    actor = ray.remote(LeaseManager).options(
        **options, get_if_exists=True, num_cpus=0, max_restarts=-1
    )
    return actor.remote()


def owner_liveness() -> Any:
    """Return an actor that ends with this process."""
    import ray

    return ray.remote(OwnerLiveness).options(num_cpus=0).remote()


class DeploymentLease:
    """This process's leases: the first holder of a deployment deploys it."""

    def __init__(self) -> None:
        import ray

        self._holder = uuid4().hex
        self._liveness = owner_liveness()
        self._lease_manager = lease_manager()
        ray.get(self._lease_manager.register.remote(self._holder, [self._liveness]))

    def take(self, plan: DeploymentConfig) -> None:
        """Lease a deployment; blocks until Serve has it, not until it has replicas."""
        import ray
        from ray import serve

        if ray.get(self._lease_manager.take.remote(plan.name, self._holder)):
            target = serve.RunTarget(application_of(plan), plan.name, route_prefix=None)
            serve.run_many([target], wait_for_applications_running=False)

    def release(self, name: str) -> None:
        """Release a deployment, without waiting."""
        self._lease_manager.release.remote(name, self._holder)
