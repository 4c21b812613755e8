"""ScoringPipeline: prepares samples in threads, queues them, and returns their outcomes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import structlog
from opentelemetry.trace import get_current_span

from alarm_models.cancellation import cancellable, check_cancelled
from alarm_models.errors import SampleError, is_exception_or_panic
from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_models.reward_models.base import HostModel, Prepared, RewardModel, can_share_pass
from alarm_models.types import (
    JudgeUsage,
    Sample,
    Score,
    Span,
    num_characters,
    require_spans_within,
    require_starts_within,
)
from alarm_service.engine.fair_queueing import INTERNAL, Caller
from alarm_service.engine.lifecycle import Lifecycle, draining_error
from alarm_service.engine.model_set import LoadedModel
from alarm_service.engine.scheduler import Companion, Outcome, QueuedSample, RequestQueue
from alarm_service.errors import ServiceError
from alarm_service.observability.metrics import Metrics

__all__ = [
    "CancellableThreadPool",
    "ComparesSamples",
    "ModelScores",
    "PendingCall",
    "ScoresForCallers",
    "ScoringPipeline",
    "SharedOutcomes",
    "deliver_prepared",
    "owned_by",
    "prepare",
    "validate_samples",
]

_log = structlog.get_logger()


#: What forward passes gave of models that share them, by model and by a sample's index.
SharedOutcomes = Mapping[LoadedModel, Mapping[int, Score | SampleError]]


@dataclass(frozen=True, slots=True)
class ModelScores:
    """One outcome per sample, in order, and the model that scored them.

    ``shared`` has what the same forward passes gave of other models, not of each sample.
    """

    outcomes: Sequence[Score | SampleError]
    model: str
    fingerprint: str
    shared: SharedOutcomes = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Count the tokens as if each sample were scored alone."""
        return sum(one.num_tokens for one in self.outcomes if isinstance(one, Score))

    @property
    def num_computed_tokens(self) -> int:
        """Count the tokens that the device ran, padding not counted."""
        return sum(one.num_computed_tokens for one in self.outcomes if isinstance(one, Score))

    @property
    def judge_usage(self) -> JudgeUsage | None:
        """What judges behind endpoints were asked for these scores; None if they were not."""
        usages = [
            one.judge_usage
            for one in self.outcomes
            if isinstance(one, Score) and one.judge_usage is not None
        ]
        return sum(usages, JudgeUsage()) if usages else None


class PendingCall:
    """Collects one outcome per sample, and wakes the caller when all have arrived.

    Outcomes arrive on any thread; the event loop is woken once a call, not once a sample. The
    samples of a cancelled call are dropped from the queue.
    """

    def __init__(self, num_samples: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._outcomes: list[Outcome | None] = [None] * num_samples
        self._num_left = num_samples
        self._lock = threading.Lock()
        self._cancelled = False
        if num_samples == 0:
            self._finished.set_result(None)

    def result_callback(self, index: int) -> Callable[[Outcome], None]:
        """Return the callback for the outcome of sample ``index``."""
        return partial(self._receive, index)

    def is_active(self) -> bool:
        """Whether the outcomes are still wanted."""
        return not self._cancelled

    def is_finished(self) -> bool:
        """Whether every outcome has arrived."""
        return self._num_left == 0

    def cancel(self) -> None:
        """Cancel: pending samples are to be dropped from the queue."""
        self._cancelled = True

    async def wait(self) -> list[Outcome]:
        """Wait for every sample's outcome."""
        await self._finished
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _receive(self, index: int, outcome: Outcome) -> None:
        with self._lock:
            if self._outcomes[index] is not None:
                return
            self._outcomes[index] = outcome
            self._num_left -= 1
            is_last = self._num_left == 0
        if is_last and not self._cancelled:
            with suppress(RuntimeError):  # the event loop is closed already
                self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)


#: How many spans a character may be in, on average.
_MAX_OVERLAP = 8


def prepare(model: RewardModel, samples: Sequence[Sample]) -> list[Prepared]:
    """Prepare samples for a model; one with spans outside its completion fails."""
    faults = validate_samples(samples)
    fitting = [sample for sample, fault in zip(samples, faults, strict=True) if fault is None]
    prepared = iter(_prepare(model, fitting) if fitting else ())
    return [next(prepared) if fault is None else fault for fault in faults]


def validate_samples(samples: Sequence[Sample]) -> list[SampleError | None]:
    """Return each sample's error, or None; these checks hold for every model."""
    return [_validate(sample) for sample in samples]


def _validate(sample: Sample) -> SampleError | None:
    check_cancelled()
    text = sample.completion_text
    try:
        _ = sample.prefill
        require_spans_within(sample.token_offsets or (), text, "token_offsets")
        for name, spans in sample.segments.items():
            require = require_starts_within if name == "errors" else require_spans_within
            require(spans, text, f"segments.{name}")
            if name not in ("errors", "turns"):  # a turn of tool calls alone has no text
                _require_text(spans, text, f"segments.{name}")
            if name != "errors":
                _require_little_overlap(spans, text, f"segments.{name}")
    except SampleError as fault:
        # Without its traceback, which would keep the sample alive as long as the error.
        return fault.with_traceback(None)
    return None


def _require_text(spans: Sequence[Span], text: str, name: str) -> None:
    """Raise `SampleError` for a span of nothing, or of white space alone."""
    for index, (start, end) in enumerate(spans):
        if not text[start:end].strip():
            raise SampleError(
                "invalid_sample", f"{name}[{index}] is [{start}, {end}], which has no text"
            )


def _require_little_overlap(spans: Sequence[Span], text: str, name: str) -> None:
    """Raise `SampleError` for spans that repeat the text many times: each of them is read."""
    num_covered = sum(end - start for start, end in spans)
    if num_covered > _MAX_OVERLAP * len(text):
        raise SampleError(
            "invalid_sample",
            f"{name} overlap: together they are {num_covered} characters long, and the completion "
            f"has {len(text)}; send each part of it in one span",
        )


def _prepare(model: RewardModel, samples: Sequence[Sample]) -> list[Prepared]:
    """Prepare samples; where one makes the whole call raise, only that one fails."""
    try:
        return model.prepare(samples)
    except BaseException as error:  # a tokenizer may raise anything; other samples go on
        if not is_exception_or_panic(error):
            raise
        if len(samples) == 1:
            message = f"the sample cannot be prepared: {error!r}"[:500]
            return [SampleError("model_failed", message)]
    return [prepared for sample in samples for prepared in _prepare(model, [sample])]


def owned_by(prepared: Sequence[Prepared], key: str) -> Sequence[Prepared]:
    """Return inputs whose prefixes are not shared with other keys; an empty key counts as none."""
    if not key:
        return prepared
    return [replace(one, owner=key) if isinstance(one, ModelInput) else one for one in prepared]


def deliver_prepared(
    prepared: Sequence[Prepared],
    start: int,
    work: Callable[..., QueuedSample],
    job: PendingCall,
    companions: Mapping[int, Sequence[Companion]],
) -> list[QueuedSample]:
    """Deliver the errors of samples, and return the samples to be queued.

    ``companions`` has the models that share a sample's pass, by its index.
    """
    now = time.monotonic()
    works = []
    for index, one in enumerate(prepared, start):
        receiver = job.result_callback(index)
        if isinstance(one, ModelInput):
            others = tuple(companions.get(index, ()))
            works.append(work(features=one, deliver=receiver, since=now, companions=others))
        else:
            receiver(one)
    return works


_T = TypeVar("_T")


class CancellableThreadPool:
    """A thread pool; a function whose caller was cancelled ends at `check_cancelled`."""

    def __init__(self, num_threads: int, name: str, life: Lifecycle) -> None:
        self._life = life
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    async def run(self, call: Callable[[], _T]) -> _T:
        """Return what the function returns; raise `Draining` once the server has stopped."""
        if self._life.is_stopped:
            raise draining_error()
        is_cancelled = threading.Event()

        def run() -> _T:
            with cancellable(is_cancelled.is_set):
                return call()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        finally:
            is_cancelled.set()

    def close(self) -> None:
        """Run no further functions; return without waiting."""
        self._threads.shutdown(wait=False)


@runtime_checkable
class ScoresForCallers(Protocol):
    """A model on other servers that schedules callers fairly itself."""

    async def score_for(
        self, caller: Caller, samples: Sequence[Sample]
    ) -> list[Score | SampleError]:
        """Score a caller's samples; one outcome a sample, in order."""


@runtime_checkable
class ComparesSamples(Protocol):
    """A model on this process's devices whose scores depend on the other samples of a group."""

    async def compare(
        self,
        samples: Sequence[Sample],
        ask: Callable[[Sequence[Sample]], Awaitable[Sequence[Score | SampleError]]],
    ) -> list[Score | SampleError]:
        """Score samples, one outcome a sample, in order; ``ask`` scores its questions."""


#: Samples tokenized at once, so that the device starts before a large request is tokenized; and
#: characters, because tokenization takes about a hundred times the memory of a text.
_CHUNK = 64
_CHUNK_CHARS = 256 << 10


#: Samples whose characters are counted before the event loop goes on with others.
_COUNTED_AT_ONCE = 1024


def _chunks(samples: Sequence[Sample]) -> Iterator[tuple[int, Sequence[Sample]]]:
    """Yield the samples that are prepared in one go, with the index of the first."""
    start = num_chars = 0
    for index, sample in enumerate(samples):
        own = num_characters(sample)
        if index > start and (index - start == _CHUNK or num_chars + own > _CHUNK_CHARS):
            yield start, samples[start:index]
            start, num_chars = index, 0
        num_chars += own
    if samples:
        yield start, samples[start:]


class ScoringPipeline:
    """Prepares samples, queues them for the devices, and returns one outcome per sample."""

    def __init__(
        self,
        queue: RequestQueue,
        life: Lifecycle,
        metrics: Metrics,
        *,
        is_deterministic: bool,
        max_sample_chars: int,
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._is_deterministic = is_deterministic
        self._max_sample_chars = max_sample_chars
        self._threads = CancellableThreadPool(2, "tokenize", life)

    async def score(
        self, loaded: LoadedModel, samples: Sequence[Sample], caller: Caller = INTERNAL
    ) -> list[Outcome]:
        """Score a caller's samples with a model; one outcome a sample, in order."""
        outcomes, _ = await self.score_shared(loaded, (), samples, caller)
        return outcomes

    async def score_shared(
        self,
        loaded: LoadedModel,
        others: Sequence[LoadedModel],
        samples: Sequence[Sample],
        caller: Caller = INTERNAL,
    ) -> tuple[list[Outcome], SharedOutcomes]:
        """Score samples with a model, and with others of its `pass_key` what its passes serve too.

        The others lack the samples that have other tokens for them, and those whose pass failed.
        """
        faults: list[SampleError | None] = []
        for start in range(0, len(samples), _COUNTED_AT_ONCE):
            faults += map(self._too_long, samples[start : start + _COUNTED_AT_ONCE])
            if len(faults) < len(samples):
                await asyncio.sleep(0)
        short = [index for index, fault in enumerate(faults) if fault is None]
        if not short:
            return [fault for fault in faults if fault is not None], {}
        given = samples if len(short) == len(samples) else [samples[index] for index in short]
        found, shared = await self._score_short(loaded, others, given, caller)
        scores = iter(found)
        return [next(scores) if fault is None else fault for fault in faults], {
            other: {short[index]: outcome for index, outcome in by_index.items()}
            for other, by_index in shared.items()
        }

    async def run_in_thread(self, call: Callable[[], _T]) -> _T:
        """Run a plain function on a tokenization thread, off the event loop.

        Once this is cancelled, the function ends at its next `check_cancelled`.
        """
        return await self._threads.run(call)

    def close(self) -> None:
        """Take no more samples; queued ones fail with `Draining`."""
        self._queue.close(draining_error())
        self._threads.close()

    def _too_long(self, sample: Sample) -> SampleError | None:
        count = num_characters(sample)
        if count <= self._max_sample_chars:
            return None
        return SampleError(
            "too_long",
            f"the sample has {count} characters, fields included, and the limit is "
            f"{self._max_sample_chars} (--max-sample-chars)",
        )

    async def _score_short(
        self,
        loaded: LoadedModel,
        others: Sequence[LoadedModel],
        samples: Sequence[Sample],
        caller: Caller,
    ) -> tuple[list[Outcome], SharedOutcomes]:
        if isinstance(loaded.model, HostModel):
            return await self._score_on_host(loaded.model, samples, caller), {}
        if isinstance(loaded.model, ComparesSamples):
            return await self._compare(loaded, loaded.model, samples, caller), {}
        return await self._score_on_device(loaded, loaded.model, others, samples, caller)

    async def _score_on_device(
        self,
        loaded: LoadedModel,
        model: RewardModel,
        others: Sequence[LoadedModel],
        samples: Sequence[Sample],
        caller: Caller,
    ) -> tuple[list[Outcome], SharedOutcomes]:
        job = PendingCall(len(samples))
        cost = BatchLayout.SINGLE if self._is_deterministic else model.cost
        shared: dict[LoadedModel, dict[int, Score | SampleError]] = {one: {} for one in others}
        try:
            for start, chunk in _chunks(samples):
                prepared = await self.run_in_thread(
                    partial(self._prepare, loaded.name, model, chunk)
                )
                companions: dict[int, list[Companion]] = {}
                for other, outcomes in shared.items():
                    found = await self.run_in_thread(
                        partial(self._inputs_of_companion, other, model.cost, chunk, prepared)
                    )
                    for index, one in enumerate(found, start):
                        if isinstance(one, ModelInput):
                            deliver = partial(outcomes.__setitem__, index)
                            companions.setdefault(index, []).append(Companion(other, one, deliver))
                        elif one is not None:
                            outcomes[index] = one
                work = partial(
                    QueuedSample,
                    loaded,
                    is_active=job.is_active,
                    cost=cost,
                    span=get_current_span(),
                    caller=caller,
                )
                self._queue.put(
                    deliver_prepared(owned_by(prepared, caller.key), start, work, job, companions)
                )
            return await job.wait(), shared
        finally:
            job.cancel()
            if not job.is_finished():
                self._queue.drop_cancelled(loaded, caller)

    def _prepare(self, name: str, model: RewardModel, samples: Sequence[Sample]) -> list[Prepared]:
        with self._metrics.preparing(name):
            return prepare(model, samples)

    def _inputs_of_companion(
        self,
        other: LoadedModel,
        cost: BatchLayout,
        samples: Sequence[Sample],
        prepared: Sequence[Prepared],
    ) -> list[Prepared | None]:
        """Prepare samples for a model that may share passes; None where it cannot share one.

        Where scores are to have the same bits whatever else is asked, it may read no other tokens.
        """
        found: list[Prepared | None] = []
        pairs = zip(prepared, self._prepare(other.name, other.replica(0), samples), strict=True)
        for own, one in pairs:
            if isinstance(one, ModelInput):
                is_shared = isinstance(own, ModelInput) and self._can_share_pass(own, one, cost)
                found.append(one if is_shared else None)
            else:
                found.append(one)
        return found

    def _can_share_pass(self, own: ModelInput, other: ModelInput, cost: BatchLayout) -> bool:
        has_same_bits = own.read_positions == other.read_positions
        return can_share_pass(own, other, cost) and (has_same_bits or not self._is_deterministic)

    async def _compare(
        self,
        loaded: LoadedModel,
        model: ComparesSamples,
        samples: Sequence[Sample],
        caller: Caller,
    ) -> list[Outcome]:
        """Score the valid samples with a model whose questions run on the device like samples."""

        async def ask(questions: Sequence[Sample]) -> Sequence[Score | SampleError]:
            runner = loaded.replica(0)
            outcomes, _ = await self._score_on_device(loaded, runner, (), questions, caller)
            scores: list[Score | SampleError] = []
            for outcome in outcomes:
                if isinstance(outcome, ServiceError):
                    raise outcome
                scores.append(outcome)
            return scores

        faults = await self.run_in_thread(partial(validate_samples, samples))
        valid = [sample for sample, fault in zip(samples, faults, strict=True) if fault is None]
        try:
            scores = iter(await model.compare(valid, ask) if valid else ())
        except ServiceError as error:
            return [error] * len(samples)
        return [next(scores) if fault is None else fault for fault in faults]

    async def _score_on_host(
        self, model: HostModel, samples: Sequence[Sample], caller: Caller
    ) -> list[Outcome]:
        """Score the valid samples with a model that needs no device."""
        faults = await self.run_in_thread(partial(validate_samples, samples))
        valid = [sample for sample, fault in zip(samples, faults, strict=True) if fault is None]
        scores = iter(await self._score(model, valid, caller) if valid else ())
        return [next(scores) if fault is None else fault for fault in faults]

    async def _score(
        self, model: HostModel, samples: Sequence[Sample], caller: Caller
    ) -> list[Score | SampleError]:
        if isinstance(model, ScoresForCallers):
            return await model.score_for(caller, samples)
        try:
            return await model.score(samples)
        except BaseException as error:
            if not is_exception_or_panic(error):
                raise
            # A defect of one model; other models' scores are still given.
            _log.exception("a model without a device failed", num_samples=len(samples))
            problem = SampleError("model_failed", f"the model raised {error!r}"[:500])
            return [problem] * len(samples)
