"""RewardEngine: admission, the active model set and the scoring pipeline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import torch

from alarm_models.errors import AlarmModelsError, CheckpointError, SampleError
from alarm_models.recipe.schema import Recipe
from alarm_models.types import Sample, Score
from alarm_service.engine.admission import Admission, content_of, estimate_tokens
from alarm_service.engine.caller import INTERNAL, Caller
from alarm_service.engine.devices import (
    MIN_BATCH_TOKENS,
    DevicePool,
    ModelLoader,
    release_unused_memory,
)
from alarm_service.engine.lifecycle import Lifecycle, LifecycleState, draining_error
from alarm_service.engine.model_set import Catalog, LoadedModel, ModelSet
from alarm_service.engine.pipeline import ScoringPipeline
from alarm_service.engine.queue import RequestQueue
from alarm_service.engine.reload import FindUnchanged, ModelSetBuilder, ModelSetHolder, OnBlocked
from alarm_service.engine.requests import ModelScores, TimedOut
from alarm_service.errors import ServiceError
from alarm_service.observability.metrics import Metrics
from alarm_service.observability.tracing import Traces

__all__ = ["EngineLimits", "PreServeCheck", "RewardEngine"]


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """How much an engine holds and runs at once, in tokens, and how long a forward pass may take.

    Without ``max_batch_tokens`` each model's own is measured. ``is_deterministic`` runs each sample
    alone, so that its score has the same bits whoever else waits. A ``forward_timeout_s`` of 0 is
    none; so is a ``max_queue_s`` of 0, the seconds of work that may be queued.
    """

    max_queued_tokens: int
    max_batch_tokens: int | None = None
    is_deterministic: bool = False
    forward_timeout_s: float = 0
    max_queue_s: float = 0
    max_sample_chars: int = 4_000_000


_log = structlog.get_logger()


class RewardEngine:
    """Scores samples with a generation's models, of which each device has a replica.

    Requests that come while the first models load wait; `load` and `unchanged` run in threads of
    their own. Models are there once `life` is ready, and may be followed by others while it is. The
    gate sees each recipe before it is served, and raises where it is not to be.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        load: ModelLoader,
        unchanged: FindUnchanged,
        gate: PreServeCheck,
        devices: Sequence[torch.device],
        limits: EngineLimits,
        metrics: Metrics,
        traces: Traces,
    ) -> None:
        first = ModelSet(Catalog(recipes), {})
        self.limits = limits
        self.metrics = metrics
        self.traces = traces
        self.life = Lifecycle(first.catalog.models)
        self._gate = gate
        self._succession = ModelSetHolder(first, release_unused_memory)
        self._waiting = RequestQueue(
            limits.max_batch_tokens or MIN_BATCH_TOKENS, limits.forward_timeout_s
        )
        self.replicas = DevicePool(
            devices,
            self._waiting,
            metrics,
            self.life,
            traces,
            forward_timeout_s=limits.forward_timeout_s,
        )
        self.passage = ScoringPipeline(
            self._waiting,
            self.life,
            metrics,
            traces,
            is_deterministic=limits.is_deterministic,
            max_sample_chars=limits.max_sample_chars,
        )
        is_measured = limits.max_batch_tokens is None
        self._maker = ModelSetBuilder(
            self.replicas, self.passage, load, unchanged, is_measured=is_measured
        )
        metrics.bind_waiting_samples(self._waiting.num_waiting)
        metrics.waiting_callers(self._waiting.num_callers)
        metrics.given_up(lambda: self.replicas.num_given_up)
        metrics.changes.serving(lambda: self.model_set.fingerprints())
        metrics.bind_ready(lambda: self.life.state is LifecycleState.READY)
        self.admission = Admission(
            limits.max_queued_tokens,
            max_queue_s=limits.max_queue_s,
            observe=metrics.set_queued_tokens,
            is_ready=lambda: self.life.state is not LifecycleState.LOADING,
        )
        metrics.set_queue_capacity(self.admission.max_tokens)
        metrics.throughput(lambda: self.admission.throughput.tokens_per_s)

    @property
    def model_set(self) -> ModelSet:
        """What is served now; until the first models are there, what will be."""
        return self._succession.current

    @property
    def catalog(self) -> Catalog:
        """The recipes and models that are served now."""
        return self.model_set.catalog

    @property
    def num_waiting(self) -> int:
        """How many samples wait for the device."""
        return self._waiting.num_waiting()

    async def start(self, *, is_patient: bool = False, logs_failure: bool = True) -> None:
        """Load every model and run each once; a failure is `life`'s to tell, and not raised.

        ``is_patient`` waits for other servers that models need, as long as it takes.
        ``logs_failure`` is False where the caller prints `life.failure`: what nobody foresaw is
        logged all the same, with its traceback.
        """
        started = time.monotonic()
        self.replicas.start()
        try:
            awaits = self.life.set_waiting_on if is_patient else None
            await self.change(list(self.catalog.recipes.values()), awaits=awaits)
        except (AlarmModelsError, ServiceError) as error:
            if logs_failure:
                _log.error("loading failed", error=str(error))
            self.life.failed(error)
        except Exception as error:  # a checkpoint can fail in any way; say so and be broken
            _log.exception("loading failed")
            self.life.failed(CheckpointError(f"the models cannot be loaded: {error!r}"[:500]))
        else:
            self.life.loaded()
            models = list(self.catalog.models)
            _log.info("ready", models=models, seconds=time.monotonic() - started)

    async def change(
        self,
        recipes: Sequence[Recipe],
        read_again: Collection[str] = (),
        awaits: OnBlocked | None = None,
    ) -> None:
        """Serve these recipes from now on; where one cannot be, raise, and all stays as it is.

        Models that are loaded already are kept, those of the recipes ``read_again`` only where
        their files did not change. One change at a time. ``awaits`` is as in `open_models`.
        """
        before = self.model_set
        async with self._maker.build(Catalog(recipes), before, read_again, awaits) as following:
            known = {id(model) for model in before.replicas}
            for recipe in recipes:
                models = following.models_of(recipe).values()
                is_known = before.catalog.recipes.get(recipe.name) == recipe
                is_known = is_known and all(id(loaded.model) in known for loaded in models)
                if not is_known or recipe.name in read_again:
                    await self._gate(self, following, recipe)
            self._succession.swap(following)

    @property
    def is_computing(self) -> bool:
        """Whether a forward pass may run, also after `close`: Python must not be finalized then."""
        return self.replicas.is_running()

    async def score(
        self, name: str | None, samples: Sequence[Sample], caller: Caller = INTERNAL
    ) -> ModelScores:
        """Score samples with the model of that name, else with the default recipe's holistic one.

        A sample that cannot be scored has its error instead. Raises `NotFound`, `Overloaded`,
        `Draining` or `Broken`.
        """
        self.catalog.model(name)  # who names nothing hears so at once
        async with self.admit(samples, caller) as generation:
            return await self.score_admitted(generation.model(name), samples, caller)

    @asynccontextmanager
    async def admit(
        self, samples: Sequence[Sample], caller: Caller = INTERNAL
    ) -> AsyncIterator[ModelSet]:
        """Hold a place in the house for these samples, from when the models are there.

        Whoever is in the house keeps the generation that it got. Raises `Overloaded`, `Draining` or
        `Broken`.
        """
        if self.life.is_draining:
            raise draining_error()
        num_tokens = estimate_tokens(samples)
        place = self.admission.admit(num_tokens, caller, content_of(samples))
        with place, self.metrics.track_request():
            with self.traces.span("admit"):
                await self.life.until_ready()
            with self._succession.acquire() as generation:
                yield generation

    async def score_admitted(
        self, loaded: LoadedModel, samples: Sequence[Sample], caller: Caller = INTERNAL
    ) -> ModelScores:
        """Score samples that were admitted before.

        Where one of them did not get through its forward pass, no failure of the server is raised:
        who is told to send all of them again sends that one again.
        """
        outcomes = await self.passage.score(loaded, samples, caller)
        is_final = any(isinstance(outcome, TimedOut) for outcome in outcomes)
        scored: list[Score | SampleError] = []
        for outcome in outcomes:
            if isinstance(outcome, ServiceError):
                if not is_final:
                    raise outcome
                outcome = SampleError("model_failed", f"not scored: {outcome.message}")
            self._count(loaded.name, outcome)
            scored.append(outcome)
        return ModelScores(scored, loaded.name, loaded.fingerprint)

    async def close(self) -> None:
        """End threads and processes; whatever still waits hears that the server is stopping."""
        self.life.stop()
        self.passage.close()
        await asyncio.to_thread(self.replicas.join, timeout_s=5)
        await self._succession.close()

    def _count(self, model: str, outcome: Score | SampleError) -> None:
        if isinstance(outcome, SampleError):
            self.metrics.sample_failed(outcome.code)
        else:
            self.metrics.sample_scored(model, outcome)


#: Raises where a recipe of a generation that is made is not to be served.
PreServeCheck = Callable[[RewardEngine, ModelSet, Recipe], Awaitable[None]]
