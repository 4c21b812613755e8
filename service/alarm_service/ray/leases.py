"""Leases of deployments: a deployment without a lease is deleted.

mypy does not see the calls of Ray actors (``manager.take.remote(...)``): the tests in tests/cluster
run them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog

if TYPE_CHECKING:  # an actor's process imports this module, and should not import torch
    from alarm_service.ray.replica import DeploymentConfig

__all__ = ["DeploymentLease", "LeaseManager", "Leases", "lease_manager", "owner_liveness"]

#: Seconds between renewals of leases, which a lease manager that was restarted does not have.
_RENEWAL_S = 10.0

#: Seconds that releasing a lease may take, as where the cluster is gone.
_RELEASE_S = 10.0

_log = structlog.get_logger()


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

    def is_held(self, name: str) -> bool:
        """Whether a deployment has a holder."""
        return name in self._holders

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
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._deleting: set[asyncio.Task[None]] = set()
        #: When all holders have renewed their leases, if this manager was restarted.
        self._known_at = time.monotonic() + (2 * _RENEWAL_S if _was_restarted() else 0.0)

    async def register(self, holder: str, liveness: list[Any], names: Sequence[str] = ()) -> None:
        """Note the leases of a holder; release them once its process ends.

        A holder that is known stays as it is.
        """
        if holder in self._watching:
            return
        for name in names:
            self._leases.take(name, holder)
        self._watching[holder] = asyncio.create_task(self._watch(holder, liveness[0]))

    async def take(self, name: str, holder: str) -> bool:
        """Add a holder of a deployment; return whether it is the first, which has to deploy it."""
        return self._leases.take(name, holder)

    async def release(self, name: str, holder: str) -> bool:
        """Delete a deployment once its last holder has released it; return whether this was it."""
        is_last = self._leases.release(name, holder)
        if (wait_s := self._known_at - time.monotonic()) > 0:
            # Others may hold it, and this holder may be unknown.
            task = asyncio.create_task(self._delete_later(name, wait_s))
            self._deleting.add(task)
            task.add_done_callback(self._deleting.discard)
            return False
        if is_last:
            await self._delete(name)
        return is_last

    async def _delete_later(self, name: str, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        if not self._leases.is_held(name):
            await self._delete(name)

    async def _delete(self, name: str) -> None:
        from ray import serve

        await asyncio.to_thread(serve.delete, name, _blocking=False)

    async def _watch(self, holder: str, liveness: Any) -> None:
        from ray.exceptions import RayError

        try:
            await liveness.wait_forever.remote()
        except RayError:  # it has ended
            for name in self._leases.names_of(holder):
                await self.release(name, holder)
            del self._watching[holder]


def _was_restarted() -> bool:
    """Whether Ray restarted the actor that this runs in."""
    import ray

    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


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
    """This process's leases: the first holder of a deployment deploys it.

    They are renewed, for a lease manager that was restarted has none.
    """

    def __init__(self) -> None:
        self._holder = uuid4().hex
        self._names: set[str] = set()
        self._lock = threading.Lock()
        self._liveness = owner_liveness()
        self._lease_manager = lease_manager()
        self._register()
        threading.Thread(target=self._renew, name="leases", daemon=True).start()

    def take(self, plan: DeploymentConfig) -> None:
        """Lease a deployment; blocks until Serve has it, not until it has replicas."""
        import ray
        from ray import serve

        from alarm_service.ray.replica import application_of

        with self._lock:
            is_first = ray.get(self._lease_manager.take.remote(plan.name, self._holder))
            self._names.add(plan.name)
        if is_first:
            target = serve.RunTarget(application_of(plan), plan.name, route_prefix=None)
            serve.run_many([target], wait_for_applications_running=False)

    def release(self, name: str) -> bool:
        """Release a deployment; return whether it was the last lease, so that it is deleted."""
        import ray

        with self._lock:
            self._names.discard(name)
            released = self._lease_manager.release.remote(name, self._holder)
        return bool(ray.get(released, timeout=_RELEASE_S))

    def _register(self) -> None:
        import ray

        with self._lock:
            ray.get(
                self._lease_manager.register.remote(
                    self._holder, [self._liveness], sorted(self._names)
                ),
                timeout=_RELEASE_S,
            )

    def _renew(self) -> None:
        from ray.exceptions import RayError

        stopped = threading.Event()
        while not stopped.wait(_RENEWAL_S):
            try:
                self._register()
            except RayError as error:  # it is being restarted, or the cluster is gone
                _log.warning("leases not renewed", error=repr(error)[:200])
            except Exception:  # Ray was shut down
                return
