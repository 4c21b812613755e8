"""RewardEngine: admission control, the active model set and the scoring pipeline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog
import torch
from opentelemetry.trace import Tracer

from alarm_models.combination.all_rules import RuleParams
from alarm_models.errors import AlarmModelsError, CheckpointError, SampleError
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.types import Reward, Sample, Score
from alarm_service.engine.admission import Admission, content_of, estimate_tokens
from alarm_service.engine.devices import (
    MIN_BATCH_TOKENS,
    DevicePool,
    ModelLoader,
    release_unused_memory,
)
from alarm_service.engine.fair_queueing import INTERNAL, Caller
from alarm_service.engine.group_assembler import GroupAssembler
from alarm_service.engine.lifecycle import Lifecycle, LifecycleState, draining_error
from alarm_service.engine.model_set import Catalog, LoadedModel, ModelSet, ModelSetHolder
from alarm_service.engine.model_set_builder import FindUnchanged, ModelSetBuilder, OnBlocked
from alarm_service.engine.pipeline import CancellableThreadPool, ModelScores, ScoringPipeline
from alarm_service.engine.scheduler import RequestQueue, TimedOut
from alarm_service.errors import ServiceError
from alarm_service.observability.metrics import Metrics

__all__ = ["Capture", "EngineLimits", "PreServeCheck", "RewardEngine"]


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Limits of the queue and of batches, in tokens, and of the time of a forward pass.

    Without ``max_batch_tokens`` it is measured for each model. ``is_deterministic`` runs each
    sample alone, so that its score does not depend on other requests, not even in the last bit.
    ``max_queue_s`` is the maximum queued work in seconds; 0 disables it, and likewise
    ``forward_timeout_s``. ``max_group_bytes`` is what groups that wait for samples may take.
    """

    max_queued_tokens: int
    max_batch_tokens: int | None = None
    is_deterministic: bool = False
    forward_timeout_s: float = 0
    max_queue_s: float = 0
    max_sample_chars: int = 4_000_000
    max_group_bytes: int = 256 << 20


_log = structlog.get_logger()


class Capture(Protocol):
    """Is given the samples and results of each request; it neither raises nor waits."""

    def put_rewards(
        self,
        samples: Sequence[Sample],
        outcomes: Sequence[Reward | SampleError],
        recipe: str,
        aspects: Sequence[str],
        fingerprint: str,
        overrides: Overrides,
        params: RuleParams,
    ) -> None:
        """Capture the rewards of one request."""

    def put_scores(
        self,
        samples: Sequence[Sample],
        outcomes: Sequence[Score | SampleError],
        model: str,
        fingerprint: str,
    ) -> None:
        """Capture the scores of one request."""


class RewardEngine:
    """Scores samples with the current model set, whose models have a replica on each device.

    Requests that arrive while the first models load wait; ``load`` and ``unchanged`` run in their
    own threads. The model set can be changed once `life` is ready. ``check`` is called with each
    recipe before it is served; it raises to refuse the recipe. `capture`, if it is set, is given
    what requests are answered.
    """

    capture: Capture | None = None

    def __init__(
        self,
        recipes: Sequence[Recipe],
        load: ModelLoader,
        unchanged: FindUnchanged,
        check: PreServeCheck,
        devices: Sequence[torch.device],
        limits: EngineLimits,
        metrics: Metrics,
        tracer: Tracer,
    ) -> None:
        first = ModelSet(Catalog(recipes), {})
        self.limits = limits
        self.metrics = metrics
        self.tracer = tracer
        self.life = Lifecycle(first.catalog.models)
        self._check = check
        self._model_sets = ModelSetHolder(first, release_unused_memory)
        self._queue = RequestQueue(
            limits.max_batch_tokens or MIN_BATCH_TOKENS, limits.forward_timeout_s
        )
        self.device_pool = DevicePool(
            devices,
            self._queue,
            metrics,
            self.life,
            tracer,
            forward_timeout_s=limits.forward_timeout_s,
            is_deterministic=limits.is_deterministic,
        )
        self.pipeline = ScoringPipeline(
            self._queue,
            self.life,
            metrics,
            is_deterministic=limits.is_deterministic,
            max_sample_chars=limits.max_sample_chars,
        )
        # Not the tokenization threads: rewards must not wait for another request's tokenization.
        self.combining_threads = CancellableThreadPool(2, "combine", self.life)
        self.groups = GroupAssembler(metrics, self.life, limits.max_group_bytes)
        is_measured = limits.max_batch_tokens is None
        self._builder = ModelSetBuilder(
            self.device_pool, self.pipeline, load, unchanged, is_measured=is_measured
        )
        metrics.bind_waiting_samples(self._queue.num_waiting)
        metrics.bind_waiting_callers(self._queue.num_callers)
        metrics.bind_abandoned_passes(lambda: self.device_pool.num_given_up)
        metrics.changes.bind_recipes(lambda: self.model_set.fingerprints())
        metrics.judges.bind(lambda: self.model_set.judge_totals())
        metrics.bind_ready(lambda: self.life.state is LifecycleState.READY)
        self.admission = Admission(
            limits.max_queued_tokens,
            max_queue_s=limits.max_queue_s,
            observe=metrics.set_queued_tokens,
            is_ready=lambda: self.life.state is not LifecycleState.LOADING,
        )
        metrics.bind_queue_capacity(self.admission.max_tokens)
        metrics.bind_throughput(lambda: self.admission.throughput.tokens_per_s)

    @property
    def model_set(self) -> ModelSet:
        """The current model set; it is empty until the first models are loaded."""
        return self._model_sets.current

    @property
    def catalog(self) -> Catalog:
        """The recipes and models being served."""
        return self.model_set.catalog

    @property
    def num_waiting(self) -> int:
        """Number of samples that wait for a device."""
        return self._queue.num_waiting()

    async def start(self, *, waits_for_servers: bool = False, logs_failure: bool = True) -> None:
        """Load every model and run each once; a failure is recorded in `life` rather than raised.

        With ``waits_for_servers``, servers that models need are awaited indefinitely.
        ``logs_failure`` is False if the caller prints `life.failure`; unexpected errors are logged
        in any case, with their traceback.
        """
        started = time.monotonic()
        self.device_pool.start()
        try:
            on_blocked = self.life.set_waiting_on if waits_for_servers else None
            await self.change(list(self.catalog.recipes.values()), on_blocked=on_blocked)
        except (AlarmModelsError, ServiceError) as error:
            if logs_failure:
                _log.error("loading failed", error=str(error))
            self.life.set_failed(error)
        except Exception as error:  # checkpoints can raise any exception
            _log.exception("loading failed")
            self.life.set_failed(CheckpointError(f"the models cannot be loaded: {error!r}"[:500]))
        else:
            self.life.set_ready()
            models = list(self.catalog.models)
            _log.info("ready", models=models, seconds=time.monotonic() - started)

    async def change(
        self,
        recipes: Sequence[Recipe],
        read_again: Collection[str] = (),
        on_blocked: OnBlocked | None = None,
    ) -> None:
        """Serve these recipes from now on; if one fails, raise without changing anything.

        Loaded models are kept; those of the recipes in ``read_again`` only if their files did not
        change. Changes run one at a time. ``on_blocked`` is as in `open_models`.
        """
        before = self.model_set
        async with self._builder.build(
            Catalog(recipes), before, read_again, on_blocked
        ) as model_set:
            known = {id(model) for model in before.replicas}
            for recipe in recipes:
                models = model_set.models_of(recipe).values()
                is_known = before.catalog.recipes.get(recipe.name) == recipe
                is_known = is_known and all(id(loaded.model) in known for loaded in models)
                if not is_known or recipe.name in read_again:
                    await self._check(self, model_set, recipe)
            self._model_sets.swap(model_set)

    async def sleep(self) -> None:
        """Refuse requests from now on, and release all models once the running ones have ended."""
        self.life.is_sleeping = True
        self._model_sets.swap(ModelSet(self.catalog, {}))
        await self._model_sets.until_released()

    async def wake(self) -> None:
        """Load the models again; if one fails, raise and go on sleeping."""
        await self.change(list(self.catalog.recipes.values()))
        self.life.is_sleeping = False

    @property
    def is_computing(self) -> bool:
        """Whether a forward pass may run, also after `close`: Python must not be finalized then."""
        return self.device_pool.is_running()

    async def score(
        self, name: str | None, samples: Sequence[Sample], caller: Caller = INTERNAL
    ) -> ModelScores:
        """Score samples with the named model, by default the default recipe's holistic one.

        The result of a sample that cannot be scored is its error. Raises `NotFound`, `Overloaded`,
        `Draining`, `Sleeping` or `Broken`.
        """
        self.catalog.model(name)  # an unknown name is refused before admission
        async with self.admit(samples, caller) as model_set:
            scores = await self.score_admitted(model_set.model(name), samples, caller)
        if self.capture is not None:
            self.capture.put_scores(samples, scores.outcomes, scores.model, scores.fingerprint)
        return scores

    @asynccontextmanager
    async def admit(
        self, samples: Sequence[Sample], caller: Caller = INTERNAL
    ) -> AsyncIterator[ModelSet]:
        """Admit these samples for the duration of the block; yield the model set once it is loaded.

        An admitted request uses the same model set to the end. Raises `Overloaded`, `Draining`,
        `Sleeping` or `Broken`. Where the queue is full, a caller that `waits` waits.
        """
        self._require_open()
        num_tokens = estimate_tokens(samples)
        async with AsyncExitStack() as stack:
            if caller.waits:
                await stack.enter_async_context(self.admission.admit_waiting(num_tokens, caller))
                self._require_open()
            else:
                content = partial(content_of, samples)
                stack.enter_context(self.admission.admit(num_tokens, caller, content))
            stack.enter_context(self.metrics.track_request())
            with self.tracer.start_as_current_span("admit"):
                await self.life.until_ready()
            yield stack.enter_context(self._model_sets.acquire())

    def _require_open(self) -> None:
        """Raise `Draining` or `Sleeping` where requests are not admitted."""
        if self.life.is_draining:
            raise draining_error()
        self.life.require_awake()

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[ModelSet]:
        """Yield the model set once it is loaded, and keep its models for the block.

        For work that no device does, which needs no admission. Raises `Draining`, `Sleeping` or
        `Broken`.
        """
        self._require_open()
        await self.life.until_ready()
        with self._model_sets.acquire() as model_set:
            yield model_set

    async def score_admitted(
        self,
        loaded: LoadedModel,
        samples: Sequence[Sample],
        caller: Caller = INTERNAL,
        others: Sequence[LoadedModel] = (),
    ) -> ModelScores:
        """Score admitted samples; models with the same `pass_key` share forward passes.

        If the forward pass of one of them timed out, server failures are not raised: a client that
        retries the request would send that sample again.
        """
        outcomes, shared = await self.pipeline.score_shared(loaded, others, samples, caller)
        is_final = any(isinstance(outcome, TimedOut) for outcome in outcomes)
        scored: list[Score | SampleError] = []
        try:
            for outcome in outcomes:
                if isinstance(outcome, ServiceError):
                    if not is_final:
                        raise outcome
                    outcome = SampleError("model_failed", f"not scored: {outcome.message}")
                scored.append(outcome)
        finally:
            self.count(loaded.name, scored)
        return ModelScores(scored, loaded.name, loaded.fingerprint, shared)

    def count(self, model: str, outcomes: Sequence[Score | SampleError]) -> None:
        """Record the outcomes of samples at a model."""
        for outcome in outcomes:
            if isinstance(outcome, SampleError):
                self.metrics.sample_failed(outcome.code)
        scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
        if scores:
            self.metrics.samples_scored(model, scores)

    async def close(self) -> None:
        """Stop threads and processes; queued samples fail with `Draining`."""
        self.life.stop()
        self.pipeline.close()
        self.combining_threads.close()
        await asyncio.to_thread(self.device_pool.join, timeout_s=5)
        await self._model_sets.close()


#: Raises if a recipe of a newly built model set must not be served.
PreServeCheck = Callable[[RewardEngine, ModelSet, Recipe], Awaitable[None]]
