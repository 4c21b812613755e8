"""A counter of seconds that is worked out when metrics are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

__all__ = ["Seconds"]


class Seconds(Collector):
    """A counter of seconds that is asked for whenever metrics are read."""

    def __init__(self, name: str, text: str, total_s: Callable[[], float]) -> None:
        self._name, self._text, self._total_s = name, text, total_s

    def collect(self) -> Iterable[Metric]:
        """Return the counter as it is now."""
        yield CounterMetricFamily(self._name, self._text, value=self._total_s())
