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

from alarm_service.observability.reward_metrics import RewardMetrics

__all__ = ["BusyTime", "CallbackCounter", "ChangeMetrics", "Metrics"]


class BusyTime:
    """The time in which at least one of any number of things is going on."""

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
        """Count what is going on."""
        with self._lock:
            return self._num_running

    def total_s(self) -> float:
        """Return the busy seconds so far, what is going on included."""
        with self._lock:
            return self._past_s + (self._now() - self._since if self._num_running else 0.0)


class _Served(Collector):
    """Which recipes are served, asked for whenever metrics are read."""

    def __init__(self, fingerprints: Callable[[], Mapping[str, str]]) -> None:
        self._fingerprints = fingerprints

    def collect(self) -> Iterable[Metric]:
        """Return 1 for each recipe, with its fingerprint of now."""
        text = "1 for each recipe that is served, with its fingerprint."
        family = GaugeMetricFamily("alarm_recipe_info", text, labels=["recipe", "fingerprint"])
        for recipe, fingerprint in self._fingerprints().items():
            family.add_metric([recipe, fingerprint], 1)
        yield family


class ChangeMetrics:
    """Counts changes by their outcome; recipes' names are the operator's, never a caller's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._changes = Counter(
            "alarm_recipe_changes",
            "Recipes loaded, unloaded and reloaded at run time, by what came of it.",
            ["change", "outcome"],
            registry=registry,
        )

    def count_change(self, change: str, outcome: str) -> None:
        """Count a change: changed, unchanged, or refused."""
        self._changes.labels(change, outcome).inc()

    def serving(self, fingerprints: Callable[[], Mapping[str, str]]) -> None:
        """Ask this, whenever metrics are read, for each recipe's fingerprint."""
        self._registry.register(_Served(fingerprints))


class CallbackCounter(Collector):
    """A counter of seconds that is asked for whenever metrics are read."""

    def __init__(self, name: str, text: str, total_s: Callable[[], float]) -> None:
        self._name, self._text, self._total_s = name, text, total_s

    def collect(self) -> Iterable[Metric]:
        """Return the counter as it is now."""
        yield CounterMetricFamily(self._name, self._text, value=self._total_s())


#: From a small model's step to the longest that a trainer waits.
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
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.rewards = RewardMetrics(registry)
        self.changes = ChangeMetrics(registry)
        self._in_house, self._on_device = BusyTime(time.monotonic), BusyTime(time.monotonic)
        self._declare_requests(registry)
        self._declare_models(registry)
        ProcessCollector(registry=registry)

    def _declare_requests(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "alarm_requests", "Answered requests.", ["route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "alarm_request_seconds",
            "From a request's first byte to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        self._queued_tokens = gauge(
            "alarm_queued_tokens", "Tokens of admitted requests, estimated from their characters."
        )
        self._max_queued_tokens = gauge(
            "alarm_max_queued_tokens", "Queued tokens from which on callers get a 429."
        )
        self._reserved_tokens = gauge(
            "alarm_reserved_tokens",
            "Tokens of requests that wait in line for room or were refused and have a place kept.",
        )
        self._tokens_per_s = gauge(
            "alarm_throughput_tokens_per_second",
            "Queued tokens done in a second, measured while there was enough to do.",
        )
        self._waiting_callers = gauge(
            "alarm_waiting_callers", "Callers whose samples wait for the device."
        )
        self._given_up_passes = gauge(
            "alarm_given_up_passes", "Forward passes that were given up and still run."
        )
        self._waiting_samples = gauge("alarm_waiting_samples", "Samples that wait for the device.")
        self._ready = gauge("alarm_ready", "1 once every model has run.")
        gauge("alarm_admitted_requests", "Requests in the house.").set_function(
            self._in_house.num_running
        )
        for name, text, busy in (
            ("alarm_occupied_seconds", "Time with a request in the house.", self._in_house),
            ("alarm_device_busy_seconds", "Time with a batch on the device.", self._on_device),
        ):
            registry.register(CallbackCounter(name, text, busy.total_s))

    def _declare_models(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model"], registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(name, text, ["model"], buckets=buckets, registry=registry)

        self._prepare_seconds = histogram(
            "alarm_prepare_seconds", "Tokenising up to 64 samples of a request."
        )
        self._queue_seconds = histogram(
            "alarm_queue_seconds", "From a sample's tokens to its forward pass."
        )
        self._forward_seconds = histogram("alarm_forward_seconds", "One forward pass.")
        self._read_seconds = histogram(
            "alarm_read_seconds", "Reading the scores off a forward pass."
        )
        self._batch_samples = histogram("alarm_batch_samples", "Samples a batch.", _SAMPLES)
        self._batch_tokens = histogram(
            "alarm_batch_tokens", "Tokens a batch, padding not counted.", _TOKENS
        )
        self._scored = counter("alarm_scored_samples", "Samples that got a score.")
        self._tokens = counter("alarm_tokens", "Their tokens, as if each were scored alone.")
        self._computed_tokens = counter(
            "alarm_computed_tokens", "Their tokens that the device ran: fewer where shared."
        )
        self._truncated = counter("alarm_truncated_samples", "Samples that were shortened.")
        self._failed_batches = counter(
            "alarm_failed_batches", "Forward passes that raised and were split."
        )
        self._timed_out_passes = counter(
            "alarm_timed_out_passes", "Forward passes that took longer than they may."
        )
        self._timed_out_samples = counter(
            "alarm_timed_out_samples",
            "Samples that failed for good as their forward pass took too long or ended its thread.",
        )
        self._sample_errors = Counter(
            "alarm_sample_errors", "Samples that a model failed.", ["code"], registry=registry
        )

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def track_request(self) -> AbstractContextManager[None]:
        """Be occupied while the block runs."""
        return self._in_house.running()

    def set_queued_tokens(self, num_tokens: int, num_reserved: int) -> None:
        """Set how many tokens are queued, and for how many a place is kept."""
        self._queued_tokens.set(num_tokens)
        self._reserved_tokens.set(num_reserved)

    def set_queue_capacity(self, max_tokens: Callable[[], int]) -> None:
        """Ask this, whenever metrics are read, how many tokens the queue takes."""
        self._max_queued_tokens.set_function(max_tokens)

    def throughput(self, tokens_per_s: Callable[[], float]) -> None:
        """Ask this, whenever metrics are read, how many queued tokens are done in a second."""
        self._tokens_per_s.set_function(tokens_per_s)

    def waiting_callers(self, num_callers: Callable[[], int]) -> None:
        """Ask this, whenever metrics are read, how many callers wait for the device."""
        self._waiting_callers.set_function(num_callers)

    def given_up(self, num_passes: Callable[[], int]) -> None:
        """Ask this, whenever metrics are read, how many passes that were given up still run."""
        self._given_up_passes.set_function(num_passes)

    def pass_given_up(self, model: str) -> None:
        """Count a forward pass that took too long."""
        self._timed_out_passes.labels(model).inc()

    def sample_timed_out(self, model: str) -> None:
        """Count a sample that did not get through its forward pass."""
        self._timed_out_samples.labels(model).inc()

    def preparing(self, model: str) -> AbstractContextManager[object]:
        """Time what the block prepares."""
        return self._prepare_seconds.labels(model).time()

    def on_device(self) -> AbstractContextManager[None]:
        """Have the device busy while the block runs."""
        return self._on_device.running()

    def batch_taken(self, model: str, batch: Sequence[_Arrived], now: float) -> None:
        """Note a batch's size and how long each of its samples waited."""
        self._batch_samples.labels(model).observe(len(batch))
        waited = self._queue_seconds.labels(model)
        for work in batch:
            waited.observe(now - work.since)

    def forwarding(self, model: str) -> AbstractContextManager[object]:
        """Time the block's forward pass."""
        return self._forward_seconds.labels(model).time()

    def reading(self, model: str) -> AbstractContextManager[object]:
        """Time the block's reading."""
        return self._read_seconds.labels(model).time()

    def batch_failed(self, model: str) -> None:
        """Count a forward pass that raised."""
        self._failed_batches.labels(model).inc()

    def batch_done(self, model: str, num_tokens: int) -> None:
        """Note what a batch held."""
        self._batch_tokens.labels(model).observe(num_tokens)

    def sample_failed(self, code: str) -> None:
        """Count a sample that got an error."""
        self._sample_errors.labels(code).inc()

    def sample_scored(self, model: str, score: _Scored) -> None:
        """Count a sample that got a score, and what that took."""
        self._scored.labels(model).inc()
        self._tokens.labels(model).inc(score.num_tokens)
        self._computed_tokens.labels(model).inc(score.num_computed_tokens)
        self._truncated.labels(model).inc(score.truncated)

    def bind_waiting_samples(self, num_samples: Callable[[], int]) -> None:
        """Ask this, whenever metrics are read, how many samples wait."""
        self._waiting_samples.set_function(num_samples)

    def bind_ready(self, is_ready: Callable[[], bool]) -> None:
        """Ask this, whenever metrics are read, whether the server is ready."""
        self._ready.set_function(is_ready)
