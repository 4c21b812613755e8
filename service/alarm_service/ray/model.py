"""A model whose replicas are on a Ray cluster, as the engine of an ingress sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import structlog
from ray import serve

from alarm_models.errors import CheckpointError, NoRoomError, SampleError
from alarm_models.rewards import DirectModel
from alarm_models.sample import Sample, Score
from alarm_service.ray.calling import call, until_answered
from alarm_service.ray.capacity import Wanted, shortage, taken_by_others
from alarm_service.ray.hold import Hold
from alarm_service.ray.plan import PREFIX, Plan
from alarm_service.ray.replica import About
from alarm_service.ray.slots import Chunk, chunks
from alarm_service.scheduling.caller import INTERNAL, Caller

__all__ = ["RayModel"]

_log = structlog.get_logger()

#: What a replica is sent in one call: some batches of work.
_CHUNK_TOKENS = 16384

#: Asking costs Serve a good part of a second on a busy machine.
_POLL_S = 1.0

#: How long Serve may take to make the replicas that it was asked for, before they are counted.
_SETTLED_S = 3

#: How often to say what a deployment that does not come up waits for.
_PATIENCE_S = 30


class RayModel(DirectModel):
    """Scores on replicas; what they are is known once `open` is through."""

    def __init__(self, plan: Plan, hold: Hold) -> None:
        super().__init__(fingerprint="")
        self._plan = plan
        self._hold = hold
        self._method: Any = None

    async def open(self) -> None:
        """Wait until the deployment has all its replicas; raise `CheckpointError`.

        `NoRoomError` where the cluster has no room for them: it is asked again then.
        """
        await self._until_running()
        handle = await asyncio.to_thread(serve.get_app_handle, self._plan.name)
        about: About = await call(handle.about)
        self._fingerprint, self.limit = about.fingerprint, about.limit
        self.dtype, self.device = about.dtype, about.device
        self._method = handle.score

    async def score(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        """Score samples of this process's own."""
        return await self.score_for(INTERNAL, samples)

    async def score_for(
        self, caller: Caller, samples: Sequence[Sample]
    ) -> list[Score | SampleError]:
        """Score samples, those of one prompt on one replica; raise `Broken` where none answers."""
        cut = chunks(samples, _CHUNK_TOKENS)
        outcomes: list[Score | SampleError | None] = [None] * len(samples)

        async def score(chunk: Chunk) -> None:
            answer = await until_answered(
                self._method,
                [samples[index] for index in chunk.indices],
                fingerprint=self._fingerprint,
                slot=chunk.slot,
                num_tokens=chunk.num_tokens,
                caller=caller,
            )
            for index, outcome in zip(chunk.indices, answer.outcomes, strict=True):
                outcomes[index] = outcome

        tasks = [asyncio.create_task(score(chunk)) for chunk in cut]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [outcome for outcome in outcomes if outcome is not None]

    async def close(self) -> None:
        """Give the deployment back: it goes once no ingress serves it."""
        await asyncio.to_thread(self._hold.give_back, self._plan.name)

    async def _until_running(self) -> None:
        began = told = time.monotonic()
        while True:
            status = await asyncio.to_thread(serve.status)
            application = status.applications.get(self._plan.name)
            state = application.status if application else None
            if state == "RUNNING":
                return
            deployments = application.deployments.values() if application else ()
            messages = [one.message for one in deployments]
            if state in ("DEPLOY_FAILED", "UNHEALTHY"):
                reason = (messages or [""])[0].strip().rpartition("\n")[2]
                raise CheckpointError(f"deployment {self._plan.name} failed: {reason}")
            now = time.monotonic()
            if now - began > _SETTLED_S:
                await self._require_room(status)
            if now - told > _PATIENCE_S:
                if state is None:  # who was to make it has ended before
                    raise CheckpointError(f"deployment {self._plan.name} was not made: start again")
                _log.warning("deployment waits", name=self._plan.name, messages=messages)
                told = now
            await asyncio.sleep(_POLL_S)

    async def _require_room(self, status: Any) -> None:
        """Raise `NoRoomError` where replicas wait for resources that nobody will give back."""
        wanted, share = _wanted(status), self._plan.share
        nodes, free = await asyncio.to_thread(_resources)
        lacking = shortage(wanted, share, nodes)
        if lacking is None:
            total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
            lacking = taken_by_others(wanted, share, total, free)
        if lacking is not None:
            raise NoRoomError(lacking)


def _resources() -> tuple[list[Mapping[str, float]], Mapping[str, float]]:
    """Return what each node has, and what is free of all of it."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return nodes, ray.available_resources()


def _wanted(status: Any) -> Wanted:
    """Count the replicas of models, of whatever generation, that run or are to run."""
    deployments = [
        deployment
        for name, application in status.applications.items()
        if name.startswith(PREFIX)
        for deployment in application.deployments.values()
    ]
    states = [deployment.replica_states for deployment in deployments]
    return Wanted(
        num_models=len(deployments),
        num_replicas=sum(
            count for one in states for state, count in one.items() if state != "STOPPING"
        ),
    )
