"""All metrics of the server, declared once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_REWARDS = (-10, -5, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 5, 10)


class _Arrived(Protocol):
    @property
    def since(self) -> float: ...


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
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
        self._queued_tokens = Gauge(
            "alarm_queued_tokens", "Tokens in the house, as counted at the door.", registry=registry
        )
        self._queue_seconds = Histogram(
            "alarm_queue_seconds",
            "From a sample's tokens to its forward pass.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._forward_seconds = Histogram(
            "alarm_forward_seconds",
            "One batch on the device.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_samples = Histogram(
            "alarm_batch_samples",
            "Samples a batch.",
            ["model"],
            buckets=_SAMPLES,
            registry=registry,
        )
        self._batch_tokens = Histogram(
            "alarm_batch_tokens",
            "Tokens a batch, padding not counted.",
            ["model"],
            buckets=_TOKENS,
            registry=registry,
        )
        self._sample_errors = Counter(
            "alarm_sample_errors", "Samples that failed.", ["code"], registry=registry
        )
        self._truncated = Counter(
            "alarm_truncated_samples", "Samples that were shortened.", ["model"], registry=registry
        )
        self._holistic = Histogram(
            "alarm_holistic_reward",
            "Normalised holistic scores.",
            ["recipe"],
            buckets=_REWARDS,
            registry=registry,
        )
        self._admitted = Counter(
            "alarm_admitted_samples",
            "Rewarded samples by whether they are past the threshold.",
            ["recipe", "admitted"],
            registry=registry,
        )
        self._waiting_samples = Gauge(
            "alarm_waiting_samples", "Samples that wait for the device.", registry=registry
        )
        self._ready = Gauge("alarm_ready", "1 once every model has run.", registry=registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def queued(self, num_tokens: int) -> None:
        """Set how many tokens are in the house."""
        self._queued_tokens.set(num_tokens)

    def batch_taken(self, model: str, batch: Sequence[_Arrived], now: float) -> None:
        """Note a batch's size and how long each of its samples waited."""
        self._batch_samples.labels(model).observe(len(batch))
        waited = self._queue_seconds.labels(model)
        for work in batch:
            waited.observe(now - work.since)

    def batch_done(self, model: str, num_tokens: int, seconds: float) -> None:
        """Note what a batch took."""
        self._batch_tokens.labels(model).observe(num_tokens)
        self._forward_seconds.labels(model).observe(seconds)

    def sample_failed(self, code: str) -> None:
        """Count a sample that got an error."""
        self._sample_errors.labels(code).inc()

    def sample_truncated(self, model: str) -> None:
        """Count a sample that was shortened."""
        self._truncated.labels(model).inc()

    def rewarded(self, recipe: str, z: float, *, admitted: bool) -> None:
        """Note a reward's holistic part."""
        self._holistic.labels(recipe).observe(z)
        self._admitted.labels(recipe, str(admitted).lower()).inc()

    def waiting(self, num_samples: Callable[[], int]) -> None:
        """Ask this, whenever metrics are read, how many samples wait."""
        self._waiting_samples.set_function(num_samples)

    def ready_while(self, is_ready: Callable[[], bool]) -> None:
        """Ask this, whenever metrics are read, whether the server is ready."""
        self._ready.set_function(is_ready)
