"""A model whose replicas are on a Ray cluster, as the engine of an ingress sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import structlog
from ray import serve

from alarm_models.errors import CheckpointError, SampleError
from alarm_models.rewards import DirectModel
from alarm_models.sample import Sample, Score
from alarm_service.ray.calling import call, until_answered
from alarm_service.ray.hold import Hold
from alarm_service.ray.plan import Plan
from alarm_service.ray.replica import About
from alarm_service.ray.slots import Chunk, chunks
from alarm_service.scheduling.caller import INTERNAL, Caller

__all__ = ["RayModel"]

_log = structlog.get_logger()

#: What a replica is sent in one call: some batches of work.
_CHUNK_TOKENS = 16384

#: Asking costs Serve a good part of a second on a busy machine.
_POLL_S = 1.0

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
        """Wait until the deployment has all its replicas; raise `CheckpointError`."""
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
        told = time.monotonic()
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
            if time.monotonic() - told > _PATIENCE_S:
                if state is None:  # who was to make it has ended before
                    raise CheckpointError(f"deployment {self._plan.name} was not made: start again")
                _log.warning("deployment waits", name=self._plan.name, messages=messages)
                told = time.monotonic()
            await asyncio.sleep(_POLL_S)
