"""The way of samples through the house: the door, the tokenisers, the device, and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog
import torch

from alarm_models.errors import AlarmModelsError, CheckpointError, SampleError
from alarm_models.features import Features
from alarm_models.recipe import Recipe
from alarm_models.rewards import Prepared, RewardModel
from alarm_models.sample import Sample, Score
from alarm_service.admission import Admission, estimate_tokens
from alarm_service.batching import Waiting
from alarm_service.catalog import Catalog, ServedModel
from alarm_service.errors import ServiceError
from alarm_service.job import Job
from alarm_service.life import Life, State, stopping
from alarm_service.loading import in_daemon_thread, warm_up_sample
from alarm_service.metrics import Metrics
from alarm_service.preparing import prepare
from alarm_service.runtime import DeviceThread
from alarm_service.tracing import Traces
from alarm_service.work import Work

__all__ = ["Engine", "Limits", "Scores"]

_T = TypeVar("_T")

_log = structlog.get_logger()

#: Samples tokenised in one go, so that the device starts before a large request is all tokens.
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an engine holds and runs at once, in tokens."""

    max_queued_tokens: int
    max_batch_tokens: int


@dataclass(frozen=True, slots=True)
class Scores:
    """One outcome a sample, in order."""

    outcomes: Sequence[Score | SampleError]

    @property
    def num_tokens(self) -> int:
        """Count the tokens as if each sample were scored alone."""
        return sum(one.num_tokens for one in self.outcomes if isinstance(one, Score))

    @property
    def num_computed_tokens(self) -> int:
        """Count the tokens that the device ran, padding not counted."""
        return sum(one.num_computed_tokens for one in self.outcomes if isinstance(one, Score))


class Engine:
    """Scores samples with the catalog's models on one device.

    Requests that come while models load wait; `load` runs in a thread of its own. Models are
    there once `life` is ready.
    """

    def __init__(
        self,
        catalog: Catalog,
        load: Callable[[Catalog, torch.device], Mapping[str, RewardModel]],
        device: torch.device,
        limits: Limits,
        metrics: Metrics,
        traces: Traces,
    ) -> None:
        self.catalog = catalog
        self.device = device
        self.metrics = metrics
        self.traces = traces
        self.models: Mapping[str, RewardModel] = {}
        self.life = Life(catalog.models)
        self._load = load
        self._waiting = Waiting(limits.max_batch_tokens)
        self._thread: DeviceThread | None = None
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="tokenize")
        metrics.room(limits.max_queued_tokens)
        metrics.waiting(self._waiting.num_waiting)
        metrics.ready_while(lambda: self.life.state is State.READY)
        self.admission = Admission(
            limits.max_queued_tokens,
            tokens_per_s=lambda: self._thread.tokens_per_s if self._thread else 0.0,
            observe=metrics.queued,
        )

    @property
    def num_waiting(self) -> int:
        """How many samples wait for the device."""
        return self._waiting.num_waiting()

    def fingerprints(self, recipe: Recipe) -> dict[str, str]:
        """Return the fingerprint of each of a recipe's models, by the recipe's names."""
        keys = {name: self.catalog.model_of(recipe, name).key for name in recipe.models}
        return {name: self.models[key].fingerprint for name, key in keys.items()}

    async def start(self) -> None:
        """Load every model and run each once; a failure is `life`'s to tell, and not raised."""
        started = time.monotonic()
        try:
            self.models = await in_daemon_thread(lambda: self._load(self.catalog, self.device))
            self._thread = DeviceThread(
                self.models, self._waiting, self.metrics, self.life, self.traces
            )
            self._thread.start()
            for served in self.catalog.models.values():
                await self._warm_up(served)
        except (AlarmModelsError, ServiceError) as error:
            _log.error("loading failed", error=str(error))
            self.life.failed(error)
        except Exception as error:  # a checkpoint can fail in any way; say so and be broken
            _log.exception("loading failed")
            self.life.failed(CheckpointError(f"the models cannot be loaded: {error!r}"))
        else:
            self.life.loaded()
            _log.info("ready", models=list(self.models), seconds=time.monotonic() - started)

    async def score(self, served: ServedModel, samples: Sequence[Sample]) -> Scores:
        """Score samples with one model; a sample that cannot be scored has its error instead.

        Raises `Overloaded`, `Draining` or `Broken`.
        """
        async with self.admitted(samples):
            return await self.scores(served, samples)

    @asynccontextmanager
    async def admitted(self, samples: Sequence[Sample]) -> AsyncIterator[None]:
        """Hold a place in the house for these samples, from when the models are there.

        Raises `Overloaded`, `Draining` or `Broken`.
        """
        if self.life.is_draining:
            raise stopping()
        num_tokens = estimate_tokens(samples)
        with self.admission.admit(num_tokens), self.metrics.in_house():
            with self.traces.span("admit"):
                await self.life.until_ready()
            yield

    async def scores(self, served: ServedModel, samples: Sequence[Sample]) -> Scores:
        """Score samples that were admitted before."""
        model = self.models[served.key]
        job = Job(len(samples))
        trace = self.traces.current()
        try:
            for start in range(0, len(samples), _CHUNK):
                chunk = samples[start : start + _CHUNK]
                prepared = await self.in_worker(partial(self._prepare, served.key, chunk))
                work = partial(
                    Work, served.key, is_wanted=job.is_wanted, cost=model.cost, trace=trace
                )
                self._waiting.put(_settle(prepared, start, work, job))
            outcomes = await job.outcomes()
        finally:
            job.cancel()
        scored: list[Score | SampleError] = []
        for outcome in outcomes:
            if isinstance(outcome, ServiceError):
                raise outcome
            self._count(served.key, outcome)
            scored.append(outcome)
        return Scores(scored)

    async def in_worker(self, call: Callable[[], _T]) -> _T:
        """Run a plain function on a tokenising thread, off the event loop."""
        if self.life.is_stopped:
            raise stopping()
        return await asyncio.get_running_loop().run_in_executor(self._workers, call)

    def stop(self) -> None:
        """End the threads; whatever still waits hears that the server is stopping."""
        self.life.stop()
        self._waiting.close(stopping())
        self._workers.shutdown(wait=False)
        if self._thread is not None:
            self._thread.join(timeout_s=5)

    def _prepare(self, model: str, samples: Sequence[Sample]) -> list[Prepared]:
        with self.metrics.preparing(model):
            return prepare(self.models[model], samples)

    async def _warm_up(self, served: ServedModel) -> None:
        (outcome,) = (await self.scores(served, [warm_up_sample(served)])).outcomes
        if isinstance(outcome, SampleError):
            raise CheckpointError(f"model {served.key!r} cannot score: {outcome}")

    def _count(self, model: str, outcome: Score | SampleError) -> None:
        if isinstance(outcome, SampleError):
            self.metrics.sample_failed(outcome.code)
        else:
            self.metrics.sample_scored(model, outcome)


def _settle(
    prepared: Sequence[Prepared], start: int, work: Callable[..., Work], job: Job
) -> list[Work]:
    """Deliver what needs no device, and return the work that does."""
    now = time.monotonic()
    works = []
    for index, one in enumerate(prepared, start):
        receiver = job.receiver(index)
        if isinstance(one, Features):
            works.append(work(features=one, deliver=receiver, since=now))
        else:
            receiver(one)
    return works
