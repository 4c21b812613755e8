"""The actor that knows who serves which deployment, and removes those that nobody serves.

It runs in a process of its own, which is small as long as nothing here imports torch.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from alarm_service.ray.leases import Leases

__all__ = ["keeper", "presence"]

_NAMESPACE = "alarm"


class Keeper:
    """Several ingresses may serve one deployment: it goes with the last of them.

    Who serves has a `Presence`, an actor that Ray ends with its owner: one that is killed gives
    back what it held.
    """

    def __init__(self) -> None:
        self._leases = Leases()
        self._watching: set[asyncio.Task[None]] = set()

    async def welcome(self, holder: str, presence: list[Any]) -> None:
        """Watch over a holder until it ends."""
        task = asyncio.create_task(self._watch(holder, presence[0]))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def take(self, name: str, holder: str) -> bool:
        """Note that a deployment is served; say whether it is to be made."""
        return self._leases.take(name, holder)

    async def give_back(self, name: str, holder: str) -> None:
        """Remove a deployment once its last holder has given it back."""
        if self._leases.give_back(name, holder):
            await asyncio.to_thread(serve.delete, name, _blocking=False)

    async def _watch(self, holder: str, presence: Any) -> None:
        try:
            await presence.until_the_end.remote()
        except RayError:  # it has ended, one way or the other
            for name in self._leases.held_by(holder):
                await self.give_back(name, holder)


class Presence:
    """Is there for as long as its owner is."""

    async def until_the_end(self) -> None:
        """Wait, for as long as there is anything to wait in."""
        await asyncio.Event().wait()


def keeper() -> Any:
    """Return the cluster's keeper, which outlives whoever asks for it first."""
    options = {"name": "keeper", "namespace": _NAMESPACE, "lifetime": "detached"}
    actor = ray.remote(Keeper).options(**options, get_if_exists=True, num_cpus=0, max_restarts=-1)
    return actor.remote()


def presence() -> Any:
    """Return an actor that ends with this process."""
    return ray.remote(Presence).options(num_cpus=0).remote()
