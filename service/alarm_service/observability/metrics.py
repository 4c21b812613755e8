"""Prometheus metrics of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from alarm_models.types import JudgeTotals
from alarm_service.observability.reward_metrics import RewardMetrics

__all__ = [
    "BusyTime",
    "CallbackCounter",
    "CaptureMetrics",
    "ChangeMetrics",
    "JudgeMetrics",
    "Metrics",
]


class BusyTime:
    """Accumulates the time during which at least one block is running."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._num_running = 0
        self._since = 0.0
        self._past_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be busy while the block runs."""
        with self._lock:
            if self._num_running == 0:
                self._since = self._now()
            self._num_running += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_running -= 1
                if self._num_running == 0:
                    self._past_s += self._now() - self._since

    def num_running(self) -> int:
        """Return how many blocks are running now."""
        with self._lock:
            return self._num_running

    def total_s(self) -> float:
        """Return the busy seconds so far, an unfinished block included."""
        with self._lock:
            return self._past_s + (self._now() - self._since if self._num_running else 0.0)


class _Served(Collector):
    """Collects the recipes being served when metrics are scraped."""

    def __init__(self, fingerprints: Callable[[], Mapping[str, str]]) -> None:
        self._fingerprints = fingerprints

    def collect(self) -> Iterable[Metric]:
        """Yield 1 for each recipe, labeled with its current fingerprint."""
        text = "1 for each recipe being served, labeled with its fingerprint."
        family = GaugeMetricFamily("alarm_recipe_info", text, labels=["recipe", "fingerprint"])
        for recipe, fingerprint in self._fingerprints().items():
            family.add_metric([recipe, fingerprint], 1)
        yield family


class ChangeMetrics:
    """Metrics of recipe changes. Recipe names come from the operator, never from a request."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._changes = Counter(
            "alarm_recipe_changes",
            "Recipe loads, unloads and reloads at run time, by outcome.",
            ["change", "outcome"],
            registry=registry,
        )

    def count_change(self, change: str, outcome: str) -> None:
        """Count a change; the outcome is changed, unchanged or refused."""
        self._changes.labels(change, outcome).inc()

    def bind_recipes(self, fingerprints: Callable[[], Mapping[str, str]]) -> None:
        """Register a callback that returns the fingerprint of each recipe at scrape time."""
        self._registry.register(_Served(fingerprints))


class CaptureMetrics:
    """Metrics of `--capture`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._captured = Counter(
            "alarm_captured_samples", "Samples written by --capture.", registry=registry
        )
        self._dropped = Counter(
            "alarm_capture_dropped_samples",
            "Samples that --capture lost, by reason: queue (the disk is too slow), disk (writing "
            "failed), too_large (one line is larger than a file may be) or failed.",
            ["reason"],
            registry=registry,
        )

    def count_captured(self, num_samples: int) -> None:
        """Count samples that were written."""
        self._captured.inc(num_samples)

    def count_dropped(self, reason: str, num_samples: int) -> None:
        """Count samples that were not written."""
        self._dropped.labels(reason).inc(num_samples)


class CallbackCounter(Collector):
    """A counter of seconds, computed at scrape time."""

    def __init__(self, name: str, text: str, total_s: Callable[[], float]) -> None:
        self._name, self._text, self._total_s = name, text, total_s

    def collect(self) -> Iterable[Metric]:
        """Yield the counter's current value."""
        yield CounterMetricFamily(self._name, self._text, value=self._total_s())


#: Metrics of judges behind endpoints: name, HELP text, value.
_OF_JUDGES: tuple[tuple[str, str, Callable[[JudgeTotals], float]], ...] = (
    (
        "alarm_judge_requests",
        "Requests to a model's judge endpoint, retries included.",
        lambda totals: totals.usage.num_requests,
    ),
    (
        "alarm_judge_cached_answers",
        "Questions to a judge whose answer was stored.",
        lambda totals: totals.usage.num_cached,
    ),
    (
        "alarm_judge_input_tokens",
        "Tokens of the questions to a judge, as its server counted them.",
        lambda totals: totals.usage.num_input_tokens,
    ),
    (
        "alarm_judge_output_tokens",
        "Tokens that a judge wrote, as its server counted them.",
        lambda totals: totals.usage.num_output_tokens,
    ),
    (
        "alarm_judge_cost",
        "Money spent on a judge, by the prices in the recipe.",
        lambda totals: totals.usage.cost,
    ),
    (
        "alarm_judge_failed_questions",
        "Questions to which a judge's server gave no answer.",
        lambda totals: totals.num_failed,
    ),
    (
        "alarm_judge_unreadable_answers",
        "Answers of a judge that were refusals, cut off or not in the format asked for.",
        lambda totals: totals.num_unread,
    ),
    (
        "alarm_judge_over_budget_questions",
        "Questions that the budget of a minute did not allow.",
        lambda totals: totals.num_over_budget,
    ),
    (
        "alarm_judge_hedged_requests",
        "Requests that were sent a second time because the first took too long.",
        lambda totals: totals.num_hedged,
    ),
)


class JudgeMetrics(Collector):
    """Collects what the judges of the served models were asked when metrics are scraped."""

    def __init__(self) -> None:
        self._totals: Callable[[], Mapping[str, JudgeTotals]] = dict

    def bind(self, totals: Callable[[], Mapping[str, JudgeTotals]]) -> None:
        """Set the callback that returns the totals of each model that asks a judge."""
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        """Yield the counters, which start again when a model is loaded again."""
        totals = self._totals()
        for name, text, value in _OF_JUDGES:
            family = CounterMetricFamily(name, text, labels=["model"])
            for model, one in totals.items():
                family.add_metric([model], value(one))
            yield family


#: From one step of a small model to the longest timeout of a trainer.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120,
            300, 600)  # fmt: skip
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class _Arrived(Protocol):
    @property
    def since(self) -> float: ...


class _Scored(Protocol):
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_computed_tokens(self) -> int: ...
    @property
    def truncated(self) -> bool: ...


class Metrics:
    """The metrics of one server, in their own registry; see `RewardMetrics` for ``keeps_texts``."""

    def __init__(self, *, keeps_texts: bool = False) -> None:
        registry = self.registry = CollectorRegistry()
        self.rewards = RewardMetrics(registry, keeps_texts=keeps_texts)
        self.changes = ChangeMetrics(registry)
        self.captures = CaptureMetrics(registry)
        self.judges = JudgeMetrics()
        registry.register(self.judges)
        self._in_flight, self._on_device = BusyTime(time.monotonic), BusyTime(time.monotonic)
        self._declare_requests(registry)
        self._declare_models(registry)
        self._declare_groups(registry)
        ProcessCollector(registry=registry)

    def _declare_requests(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "alarm_requests",
            "HTTP requests answered, by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "alarm_request_seconds",
            "Seconds from the first byte of a request to its response.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        self._queued_tokens = gauge(
            "alarm_queued_tokens",
            "Tokens of admitted requests, estimated from their length in characters.",
        )
        self._max_queued_tokens = gauge(
            "alarm_max_queued_tokens", "Queue capacity in tokens; requests beyond it get HTTP 429."
        )
        self._reserved_tokens = gauge(
            "alarm_reserved_tokens",
            "Tokens of requests that wait for queue capacity or were refused and keep their place.",
        )
        self._tokens_per_s = gauge(
            "alarm_throughput_tokens_per_second",
            "Queued tokens completed per second, measured while the queue is not empty.",
        )
        self._waiting_callers = gauge(
            "alarm_waiting_callers", "Callers with samples waiting for a device."
        )
        self._given_up_passes = gauge(
            "alarm_given_up_passes",
            "Forward passes that were abandoned after a timeout and are still running.",
        )
        self._waiting_samples = gauge("alarm_waiting_samples", "Samples waiting for a device.")
        self._ready = gauge("alarm_ready", "1 once every model is loaded and warmed up.")
        gauge(
            "alarm_admitted_requests", "Admitted requests that are queued or running."
        ).set_function(self.num_in_flight)
        for name, text, total_s in (
            (
                "alarm_occupied_seconds",
                "Seconds during which at least one admitted request was in flight.",
                self.occupied_s,
            ),
            (
                "alarm_device_busy_seconds",
                "Seconds during which a batch was running on a device.",
                self.device_busy_s,
            ),
        ):
            registry.register(CallbackCounter(name, text, total_s))

    def _declare_models(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model"], registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(name, text, ["model"], buckets=buckets, registry=registry)

        self._prepare_seconds = histogram(
            "alarm_prepare_seconds", "Seconds to tokenize up to 64 samples of a request."
        )
        self._queue_seconds = histogram(
            "alarm_queue_seconds",
            "Seconds a tokenized sample waited in the queue for its forward pass.",
        )
        self._forward_seconds = histogram("alarm_forward_seconds", "Seconds per forward pass.")
        self._read_seconds = histogram(
            "alarm_read_seconds",
            "Seconds to compute the scores from the outputs of a forward pass.",
        )
        self._batch_samples = histogram("alarm_batch_samples", "Samples per batch.", _SAMPLES)
        self._batch_tokens = histogram(
            "alarm_batch_tokens", "Tokens per batch, excluding padding.", _TOKENS
        )
        self._scored = counter("alarm_scored_samples", "Samples scored.")
        self._tokens = counter(
            "alarm_tokens", "Tokens of scored samples, counting shared prefixes once per sample."
        )
        self._computed_tokens = counter(
            "alarm_computed_tokens",
            "Tokens of scored samples that a device computed, without shared or cached prefixes.",
        )
        self._truncated = counter(
            "alarm_truncated_samples", "Samples truncated to a model's limit."
        )
        self._failed_batches = counter(
            "alarm_failed_batches",
            "Batches whose forward pass raised and that were split to be retried.",
        )
        self._timed_out_passes = counter(
            "alarm_timed_out_passes", "Forward passes that exceeded --forward-timeout-s."
        )
        self._timed_out_samples = counter(
            "alarm_timed_out_samples",
            "Samples failed permanently because their forward pass timed out or its thread died.",
        )
        self._sample_errors = Counter(
            "alarm_sample_errors",
            "Samples that a model failed to score, by error code.",
            ["code"],
            registry=registry,
        )

    def _declare_groups(self, registry: CollectorRegistry) -> None:
        self._open_groups = Gauge(
            "alarm_open_groups",
            "Groups of which some samples came and others are awaited.",
            registry=registry,
        )
        self._waiting_members = Gauge(
            "alarm_waiting_members",
            "Samples of open groups whose callers wait.",
            registry=registry,
        )
        self._groups = Counter(
            "alarm_groups",
            "Groups that came in several requests, by outcome: complete or incomplete; and samples "
            "that were refused as conflict.",
            ["outcome"],
            registry=registry,
        )
        self._member_wait_seconds = Histogram(
            "alarm_member_wait_seconds",
            "Seconds that a scored sample waited for the others of its group.",
            buckets=_SECONDS,
            registry=registry,
        )

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count one response and its duration."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def track_request(self) -> AbstractContextManager[None]:
        """Count a request as in flight while the block runs."""
        return self._in_flight.running()

    def num_in_flight(self) -> int:
        """Return the number of admitted requests that are queued or running."""
        return self._in_flight.num_running()

    def occupied_s(self) -> float:
        """Return the seconds so far in which at least one admitted request was in flight."""
        return self._in_flight.total_s()

    def device_busy_s(self) -> float:
        """Return the seconds so far in which a batch was running on a device."""
        return self._on_device.total_s()

    def set_queued_tokens(self, num_tokens: int, num_reserved: int) -> None:
        """Set the number of queued tokens and of tokens with a reserved place."""
        self._queued_tokens.set(num_tokens)
        self._reserved_tokens.set(num_reserved)

    def bind_queue_capacity(self, max_tokens: Callable[[], int]) -> None:
        """Register a callback for the queue capacity in tokens."""
        self._max_queued_tokens.set_function(max_tokens)

    def bind_throughput(self, tokens_per_s: Callable[[], float]) -> None:
        """Register a callback for the measured throughput in tokens per second."""
        self._tokens_per_s.set_function(tokens_per_s)

    def bind_waiting_callers(self, num_callers: Callable[[], int]) -> None:
        """Register a callback for the number of callers with waiting samples."""
        self._waiting_callers.set_function(num_callers)

    def bind_abandoned_passes(self, num_passes: Callable[[], int]) -> None:
        """Register a callback for the number of abandoned passes that are still running."""
        self._given_up_passes.set_function(num_passes)

    def pass_given_up(self, model: str) -> None:
        """Count a forward pass that exceeded its timeout."""
        self._timed_out_passes.labels(model).inc()

    def sample_timed_out(self, model: str) -> None:
        """Count a sample that failed because its forward pass timed out."""
        self._timed_out_samples.labels(model).inc()

    def preparing(self, model: str) -> AbstractContextManager[object]:
        """Time the block as preparation."""
        return self._prepare_seconds.labels(model).time()

    def on_device(self) -> AbstractContextManager[None]:
        """Count the device as busy while the block runs."""
        return self._on_device.running()

    def batch_taken(self, model: str, batch: Sequence[_Arrived], now: float) -> None:
        """Observe the size of a batch and how long each of its samples waited."""
        self._batch_samples.labels(model).observe(len(batch))
        waited = self._queue_seconds.labels(model)
        for work in batch:
            waited.observe(now - work.since)

    def forwarding(self, model: str) -> AbstractContextManager[object]:
        """Time the block as a forward pass."""
        return self._forward_seconds.labels(model).time()

    def reading(self, model: str) -> AbstractContextManager[object]:
        """Time the block as reading scores."""
        return self._read_seconds.labels(model).time()

    def batch_failed(self, model: str) -> None:
        """Count a forward pass that raised."""
        self._failed_batches.labels(model).inc()

    def batch_done(self, model: str, num_tokens: int) -> None:
        """Observe the number of tokens in a batch."""
        self._batch_tokens.labels(model).observe(num_tokens)

    def sample_failed(self, code: str) -> None:
        """Count a sample that got an error."""
        self._sample_errors.labels(code).inc()

    def samples_scored(self, model: str, scores: Sequence[_Scored]) -> None:
        """Count scored samples and their tokens."""
        self._scored.labels(model).inc(len(scores))
        self._tokens.labels(model).inc(sum(one.num_tokens for one in scores))
        self._computed_tokens.labels(model).inc(sum(one.num_computed_tokens for one in scores))
        self._truncated.labels(model).inc(sum(one.truncated for one in scores))

    def bind_waiting_samples(self, num_samples: Callable[[], int]) -> None:
        """Register a callback for the number of waiting samples."""
        self._waiting_samples.set_function(num_samples)

    def bind_groups(self, num_open: Callable[[], int], num_waiting: Callable[[], int]) -> None:
        """Register callbacks for the number of open groups and of members that wait in them."""
        self._open_groups.set_function(num_open)
        self._waiting_members.set_function(num_waiting)

    def count_group(self, outcome: str) -> None:
        """Count a group as complete or incomplete, or a sample as a conflict."""
        self._groups.labels(outcome).inc()

    def observe_member_wait(self, seconds: float) -> None:
        """Observe how long a scored sample waited for the others of its group."""
        self._member_wait_seconds.observe(seconds)

    def bind_ready(self, is_ready: Callable[[], bool]) -> None:
        """Register a callback that returns whether the server is ready."""
        self._ready.set_function(is_ready)
