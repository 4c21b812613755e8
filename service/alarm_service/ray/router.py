"""The way from a handle to a replica, in Ray Serve's own terms."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from alarm_service.ray.routing import choose_replica

__all__ = ["SlotRouter"]

#: How long to wait before a replica that was full is asked again.
_PAUSE_S = 0.05


class SlotRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types that we could check
    """Sends a slot's calls to the replica that `placed` chooses by the tokens under way.

    As Ray's own `CapacityQueueRouter` it decides where a request asks for a replica, rather than in
    the tasks that probe queues: what is decided counts for the next decision.
    """

    def initialize_state(self, **_: Any) -> None:
        """Begin with nothing under way."""
        self._under_way: dict[tuple[Any, str], int] = {}

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        if is_retry:
            await asyncio.sleep(_PAUSE_S)
        while not self._replicas:
            self._replicas_updated_event.clear()
            await self._replicas_updated_event.wait()
        replicas = {replica.unique_id: replica for replica in self._replicas}
        told = pending_request.kwargs
        if "slot" not in told:  # a question about the model, which any replica answers
            return self._replicas[next(iter(self._replicas))]
        loads = dict.fromkeys(replicas, 0)
        for (replica, _), num_tokens in list(self._under_way.items()):
            if replica.unique_id in loads:
                loads[replica.unique_id] += num_tokens
        chosen = replicas[
            choose_replica(told["slot"], told["num_tokens"], loads, told["num_passed"])
        ]
        call = (chosen, pending_request.metadata.internal_request_id)
        self._under_way[call] = told["num_tokens"]
        return self._replicas[chosen]

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Forget a call that is through, or that its replica refused."""
        self._under_way.pop((replica_id, internal_request_id), None)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Rank replicas for Serve's own tasks, which are not started here."""
        return [candidate_replicas]
