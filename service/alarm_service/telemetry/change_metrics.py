"""The metrics of what is served: which recipes, and how they were changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = ["ChangeMetrics"]


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

    def came_to(self, change: str, outcome: str) -> None:
        """Count a change: changed, unchanged, or refused."""
        self._changes.labels(change, outcome).inc()

    def serving(self, fingerprints: Callable[[], Mapping[str, str]]) -> None:
        """Ask this, whenever metrics are read, for each recipe's fingerprint."""
        self._registry.register(_Served(fingerprints))
