"""The way of samples through the house: the door, the tokenisers, the device, and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TypeVar

import structlog
import torch
from alarm_models.errors import AlarmModelsError, CheckpointError, SampleError
from alarm_models.network import Features
from alarm_models.recipe import Recipe
from alarm_models.rewards import Prepared, RewardModel
from alarm_models.sample import Sample, Score
from alarm_models.specs import LengthSpec
from alarm_models.template import TextTemplate

from alarm_service.admission import Admission, estimate_tokens
from alarm_service.batching import Waiting, Work
from alarm_service.catalog import Catalog, ServedModel
from alarm_service.errors import Broken, Draining, ServiceError
from alarm_service.job import Job
from alarm_service.metrics import Metrics
from alarm_service.runtime import DeviceThread

__all__ = ["Engine", "Limits", "Scores", "State"]

_T = TypeVar("_T")

_log = structlog.get_logger()

#: Samples tokenised in one go, so that the device starts before a large request is all tokens.
_CHUNK = 64

_WARM_UP = Sample("question: Is it warm? context: It is.", "It is. Yes, it is warm in here now.")


class State(StrEnum):
    """Where a server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an engine holds and runs at once, in tokens."""

    max_queued_tokens: int
    max_batch_tokens: int


@dataclass(frozen=True, slots=True)
class Scores:
    """One outcome a sample, in order, and what they cost."""

    outcomes: Sequence[Score | SampleError]
    num_tokens: int
    num_computed_tokens: int


class Engine:
    """Scores samples with the catalog's models on one device.

    Requests that come while models load wait; `load` runs in a thread of its own. Models are
    there once `state` is ready.
    """

    def __init__(
        self,
        catalog: Catalog,
        load: Callable[[Catalog, torch.device], Mapping[str, RewardModel]],
        device: torch.device,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.catalog = catalog
        self.device = device
        self.metrics = metrics
        self.models: Mapping[str, RewardModel] = {}
        self.failure: Exception | None = None
        self._load = load
        self._waiting = Waiting(limits.max_batch_tokens)
        self._thread: DeviceThread | None = None
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="tokenize")
        self._is_draining = False
        self._loaded = asyncio.Event()
        self.admission = Admission(
            limits.max_queued_tokens,
            tokens_per_s=lambda: self._thread.tokens_per_s if self._thread else 0.0,
            observe=metrics.queued,
        )

    @property
    def state(self) -> State:
        """Where the engine is in its life."""
        if self.failure is not None or (self._thread is not None and self._thread.death):
            return State.BROKEN
        if self._is_draining:
            return State.DRAINING
        return State.READY if self._loaded.is_set() else State.LOADING

    @property
    def reason(self) -> str:
        """Why the engine is not ready, in a sentence."""
        match self.state:
            case State.BROKEN:
                cause = self.failure or (self._thread.death if self._thread else None)
                return f"broken: {cause}"
            case State.LOADING:
                return f"loading {', '.join(self.catalog.models)}"
            case state:
                return state.value

    def fingerprints(self, recipe: Recipe) -> dict[str, str]:
        """Return the fingerprint of each of a recipe's models, by the recipe's names."""
        keys = {name: self.catalog.model_of(recipe, name).key for name in recipe.models}
        return {name: self.models[key].fingerprint for name, key in keys.items()}

    async def start(self) -> None:
        """Load every model and run each once; sets `failure` instead of raising."""
        started = time.monotonic()
        try:
            self.models = await asyncio.to_thread(self._load, self.catalog, self.device)
            self._thread = DeviceThread(self.models, self._waiting, self.metrics)
            self._thread.start()
            for served in self.catalog.models.values():
                await self._warm_up(served)
        except (AlarmModelsError, ServiceError) as error:
            _log.error("loading failed", error=str(error))
            self.failure = error
        except Exception as error:  # a checkpoint can fail in any way; say so and be broken
            _log.exception("loading failed")
            self.failure = error
        else:
            self.metrics.ready(is_ready=True)
            _log.info("ready", models=list(self.models), seconds=time.monotonic() - started)
        self._loaded.set()

    async def score(self, served: ServedModel, samples: Sequence[Sample]) -> Scores:
        """Score samples with one model; a sample that cannot be scored has its error instead.

        Raises `Overloaded`, `Draining` or `Broken`.
        """
        with self.admit(samples):
            await self.until_ready()
            return await self.scores(served, samples)

    def admit(self, samples: Sequence[Sample]) -> AbstractContextManager[None]:
        """Hold a place in the house for these samples; a context manager."""
        if self._is_draining:
            raise Draining("the server is stopping; send this to another", retry_after_s=5)
        return self.admission.admit(estimate_tokens(samples))

    async def until_ready(self) -> None:
        """Wait until the models are loaded; raise `Broken` where they cannot be."""
        await self._loaded.wait()
        if self.state is State.BROKEN:
            raise Broken(self.reason, retry_after_s=5)

    async def scores(self, served: ServedModel, samples: Sequence[Sample]) -> Scores:
        """Score samples that were admitted before."""
        model = self.models[served.key]
        job = Job(len(samples))
        num_computed = 0
        try:
            for start in range(0, len(samples), _CHUNK):
                chunk = samples[start : start + _CHUNK]
                prepared = await self.in_worker(partial(_prepare, model, chunk))
                works = _settle(prepared, start, served.key, job)
                num_computed += sum(work.features.num_tokens for work in works)
                self._waiting.put(works)
            outcomes = await job.outcomes()
        finally:
            job.cancel()
        scored: list[Score | SampleError] = []
        for outcome in outcomes:
            if isinstance(outcome, ServiceError):
                raise outcome
            self._count(served.key, outcome)
            scored.append(outcome)
        num_tokens = sum(one.num_tokens for one in scored if isinstance(one, Score))
        return Scores(scored, num_tokens, num_computed)

    async def in_worker(self, call: Callable[[], _T]) -> _T:
        """Run a plain function on a tokenising thread, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, call)

    def drain(self) -> None:
        """Take no new requests; running ones go on."""
        self._is_draining = True
        self.metrics.ready(is_ready=False)

    def stop(self) -> None:
        """End the threads; whatever still waits hears that the server is stopping."""
        self.drain()
        self._waiting.close(Draining("the server is stopping", retry_after_s=5))
        self._workers.shutdown(wait=False, cancel_futures=True)
        if self._thread is not None:
            self._thread.join(timeout_s=5)

    async def _warm_up(self, served: ServedModel) -> None:
        fields = dict.fromkeys(_named_fields(served), "Is it warm?")
        sample = replace(_WARM_UP, fields=fields)
        (outcome,) = (await self.scores(served, [sample])).outcomes
        if isinstance(outcome, SampleError):
            raise CheckpointError(f"model {served.key!r} cannot score: {outcome}")

    def _count(self, model: str, outcome: Score | SampleError) -> None:
        if isinstance(outcome, SampleError):
            self.metrics.sample_failed(outcome.code)
        elif outcome.truncated:
            self.metrics.sample_truncated(model)


def _prepare(model: RewardModel, samples: Sequence[Sample]) -> list[Prepared]:
    """Prepare samples; where one makes the whole call raise, only that one fails."""
    try:
        return model.prepare(samples)
    except Exception as error:  # a tokenizer may raise anything; its neighbours go on
        if len(samples) == 1:
            return [SampleError("model_failed", f"the sample cannot be prepared: {error!r}")]
    return [prepared for sample in samples for prepared in _prepare(model, [sample])]


def _settle(prepared: Sequence[Prepared], start: int, model: str, job: Job) -> list[Work]:
    """Deliver what needs no device, and return the work that does."""
    now = time.monotonic()
    works = []
    for index, one in enumerate(prepared, start):
        receiver = job.receiver(index)
        if isinstance(one, Features):
            works.append(Work(model, one, receiver, job.is_wanted, now))
        else:
            receiver(one)
    return works


def _named_fields(served: ServedModel) -> tuple[str, ...]:
    if isinstance(served.spec, LengthSpec) or served.spec.template == "chat":
        return ()
    return TextTemplate(served.spec.template).names
