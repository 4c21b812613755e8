"""What runs in a replica: an engine of one model, in a process and on GPUs of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from alarm_models.allocator import keep_freed_memory
from alarm_models.errors import SampleError
from alarm_models.sample import Sample, Score
from alarm_service.app import create_engine
from alarm_service.ray.plan import Plan
from alarm_service.ray.scaling import QUEUED_TOKENS
from alarm_service.scheduling.caller import INTERNAL, Caller
from alarm_service.scheduling.life import State
from alarm_service.telemetry.log_stream import log_stream
from alarm_service.telemetry.logs import set_up_logs

__all__ = ["About", "Answer", "ModelReplica"]


@dataclass(frozen=True, slots=True)
class About:
    """What a replica says of its model."""

    fingerprint: str
    limit: int | None
    dtype: str | None
    device: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One outcome a sample, in order, and the fingerprint of the model that gave them."""

    fingerprint: str
    outcomes: Sequence[Score | SampleError]


class ModelReplica:
    """Scores samples with one model; batches, shares and splits as an engine does alone."""

    async def __init__(self, plan: Plan) -> None:  # type: ignore[misc]  # Serve awaits it
        keep_freed_memory()
        set_up_logs(plan.settings.log_level, log_stream(sys.stderr.fileno()))
        self._engine = create_engine([plan.recipe], plan.settings, plan.load)
        await self._engine.start()
        if self._engine.life.failure is not None:
            raise self._engine.life.failure
        self._model = self._engine.generation.model(None).model

    def about(self) -> About:
        """Say what the model is."""
        devices = ",".join(map(str, self._engine.replicas.devices))
        return About(self._model.fingerprint, self._model.limit, self._model.dtype, devices)

    async def score(
        self,
        samples: Sequence[Sample],
        *,
        slot: int,
        num_tokens: int,
        num_passed: int,
        caller: Caller = INTERNAL,
    ) -> Answer:
        """Score a caller's samples; all else is for the router, which reads it on the way."""
        scores = await self._engine.score(None, samples, caller)
        return Answer(scores.fingerprint, scores.outcomes)

    def check_health(self) -> None:
        """Raise once the device is lost: Serve then puts another replica in this one's place."""
        if self._engine.life.state is State.BROKEN:
            raise RuntimeError(self._engine.life.reason)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell the autoscaler how many tokens are in this house."""
        return {QUEUED_TOKENS: float(self._engine.admission.num_queued)}

    async def __del__(self) -> None:
        """Hear from Serve that nothing is asked any more."""
        await self._engine.close()
