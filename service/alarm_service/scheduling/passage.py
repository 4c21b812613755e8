"""The passage of samples through a model: prepared in threads, run on a device, read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

from alarm_models.cancellation import cancellable
from alarm_models.errors import SampleError
from alarm_models.features import BatchCost
from alarm_models.rewards import DirectModel, Prepared, RewardModel
from alarm_models.sample import Sample, Score
from alarm_service.scheduling.batching import Waiting
from alarm_service.scheduling.caller import INTERNAL, Caller
from alarm_service.scheduling.job import Job
from alarm_service.scheduling.life import Life, stopping
from alarm_service.scheduling.loaded import Loaded
from alarm_service.scheduling.preparing import faults_of, owned_by, prepare, settle
from alarm_service.scheduling.work import Outcome, Work
from alarm_service.telemetry.metrics import Metrics
from alarm_service.telemetry.tracing import Traces

__all__ = ["Passage", "ScoresForCallers"]

_T = TypeVar("_T")


@runtime_checkable
class ScoresForCallers(Protocol):
    """A model elsewhere that shares its devices out itself."""

    async def score_for(
        self, caller: Caller, samples: Sequence[Sample]
    ) -> list[Score | SampleError]:
        """Score a caller's samples; one outcome a sample, in order."""


#: Samples tokenised in one go, so that the device starts before a large request is all tokens.
_CHUNK = 64


class Passage:
    """Takes samples to what waits for the devices, and their outcomes back."""

    def __init__(
        self,
        waiting: Waiting,
        life: Life,
        metrics: Metrics,
        traces: Traces,
        *,
        is_deterministic: bool,
    ) -> None:
        self._waiting = waiting
        self._life = life
        self._metrics = metrics
        self._traces = traces
        self._is_deterministic = is_deterministic
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="tokenize")

    async def outcomes(
        self, loaded: Loaded, samples: Sequence[Sample], caller: Caller = INTERNAL
    ) -> list[Outcome]:
        """Score a caller's samples with a model; one outcome a sample, in order."""
        if isinstance(loaded.model, DirectModel):
            return await self._checked(loaded.model, samples, caller)
        return await self._forwarded(loaded, loaded.model, samples, caller)

    async def in_worker(self, call: Callable[[], _T]) -> _T:
        """Run a plain function on a tokenising thread, off the event loop.

        Where the caller leaves, the function ends at its next `check_cancelled`.
        """
        if self._life.is_stopped:
            raise stopping()
        has_left = threading.Event()

        def run() -> _T:
            with cancellable(has_left.is_set):
                return call()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._workers, run)
        finally:
            has_left.set()

    def close(self) -> None:
        """Let nothing through any more; whatever waits hears that the server is stopping."""
        self._waiting.close(stopping())
        self._workers.shutdown(wait=False)

    async def _forwarded(
        self, loaded: Loaded, model: RewardModel, samples: Sequence[Sample], caller: Caller
    ) -> list[Outcome]:
        job = Job(len(samples))
        trace = self._traces.current()
        cost = BatchCost.ALONE if self._is_deterministic else model.cost
        try:
            for start in range(0, len(samples), _CHUNK):
                chunk = samples[start : start + _CHUNK]
                prepared = await self.in_worker(partial(self._prepare, loaded.name, model, chunk))
                work = partial(
                    Work, loaded, is_wanted=job.is_wanted, cost=cost, trace=trace, caller=caller
                )
                self._waiting.put(settle(owned_by(prepared, caller.key), start, work, job))
            return await job.outcomes()
        finally:
            job.cancel()

    def _prepare(self, name: str, model: RewardModel, samples: Sequence[Sample]) -> list[Prepared]:
        with self._metrics.preparing(name):
            return prepare(model, samples)

    async def _checked(
        self, model: DirectModel, samples: Sequence[Sample], caller: Caller
    ) -> list[Outcome]:
        """Give a model that needs no device all samples that have no faults of their own."""
        faults = await self.in_worker(partial(faults_of, samples))
        sound = [sample for sample, fault in zip(samples, faults, strict=True) if fault is None]
        scores = iter(await self._score(model, sound, caller) if sound else ())
        return [next(scores) if fault is None else fault for fault in faults]

    async def _score(
        self, model: DirectModel, samples: Sequence[Sample], caller: Caller
    ) -> list[Score | SampleError]:
        if isinstance(model, ScoresForCallers):
            return await model.score_for(caller, samples)
        return await model.score(samples)
