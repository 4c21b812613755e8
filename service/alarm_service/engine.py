"""The engine: models loaded and kept, the door, and the passage behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog
import torch

from alarm_models.errors import AlarmModelsError, CheckpointError, SampleError
from alarm_models.recipe import Recipe
from alarm_models.rewards import DirectModel, Model
from alarm_models.sample import Sample, Score
from alarm_service.admission import Admission, estimate_tokens
from alarm_service.batching import Waiting
from alarm_service.budget import LEAST_BUDGET
from alarm_service.catalog import Catalog, ServedModel
from alarm_service.errors import ServiceError
from alarm_service.life import Life, State, stopping
from alarm_service.loading import in_daemon_thread, require_named_outputs, warm_up_sample
from alarm_service.metrics import Metrics
from alarm_service.passage import Passage
from alarm_service.replicas import Load, Replicas
from alarm_service.tracing import Traces
from alarm_service.work import Scores

__all__ = ["Engine", "Limits"]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an engine holds and runs at once, in tokens.

    Without ``max_batch_tokens`` each model's own is measured. ``is_deterministic`` runs each sample
    alone, so that its score has the same bits whoever else waits.
    """

    max_queued_tokens: int
    max_batch_tokens: int | None = None
    is_deterministic: bool = False


class Engine:
    """Scores samples with the catalog's models, of which each device has a replica.

    Requests that come while models load wait; `load` runs in a thread of its own. Models are
    there once `life` is ready.
    """

    def __init__(
        self,
        catalog: Catalog,
        load: Load,
        devices: Sequence[torch.device],
        limits: Limits,
        metrics: Metrics,
        traces: Traces,
    ) -> None:
        self.catalog = catalog
        self.limits = limits
        self.metrics = metrics
        self.traces = traces
        self.models: Mapping[str, Model] = {}
        self.life = Life(catalog.models)
        self._load = load
        self._waiting = Waiting(limits.max_batch_tokens or LEAST_BUDGET)
        self.replicas = Replicas(devices, self._waiting, metrics, self.life, traces)
        self.passage = Passage(
            self._waiting, self.life, metrics, traces, is_deterministic=limits.is_deterministic
        )
        metrics.room(limits.max_queued_tokens)
        metrics.waiting(self._waiting.num_waiting)
        metrics.ready_while(lambda: self.life.state is State.READY)
        self.admission = Admission(
            limits.max_queued_tokens,
            tokens_per_s=lambda: self.replicas.tokens_per_s,
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
            load = partial(
                self.replicas.load,
                self._load,
                self.catalog,
                is_measured=self.limits.max_batch_tokens is None,
            )
            self.models = await in_daemon_thread(load)
            for model in self._direct:
                await model.open()
            self.replicas.start()
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
        outcomes = await self.passage.outcomes(served.key, self.models[served.key], samples)
        scored: list[Score | SampleError] = []
        for outcome in outcomes:
            if isinstance(outcome, ServiceError):
                raise outcome
            self._count(served.key, outcome)
            scored.append(outcome)
        return Scores(scored)

    @property
    def _direct(self) -> list[DirectModel]:
        return [model for model in self.models.values() if isinstance(model, DirectModel)]

    async def close(self) -> None:
        """End threads and processes; whatever still waits hears that the server is stopping."""
        self.life.stop()
        self.passage.close()
        await asyncio.to_thread(self.replicas.join, timeout_s=5)
        for model in self._direct:
            await model.close()

    async def _warm_up(self, served: ServedModel) -> None:
        (outcome,) = (await self.scores(served, [warm_up_sample(served)])).outcomes
        if isinstance(outcome, SampleError):
            model = self.models[served.key]
            if isinstance(model, DirectModel) and model.is_elsewhere:
                # It answered as it was opened; that a judge has no number for this is no fault.
                _log.warning("no score to warm up", model=served.key, error=str(outcome))
                return
            raise CheckpointError(f"model {served.key!r} cannot score: {outcome}")
        require_named_outputs(self.catalog.outputs_of(served), outcome)

    def _count(self, model: str, outcome: Score | SampleError) -> None:
        if isinstance(outcome, SampleError):
            self.metrics.sample_failed(outcome.code)
        else:
            self.metrics.sample_scored(model, outcome)
