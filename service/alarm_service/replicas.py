"""What each device runs: a replica of every model, and the thread that takes batches for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from alarm_models.rewards import DirectModel, Model
from alarm_service.batching import Waiting
from alarm_service.budget import measured_budget
from alarm_service.catalog import Catalog
from alarm_service.life import Life
from alarm_service.loading import warm_up_sample
from alarm_service.metrics import Metrics
from alarm_service.runtime import DeviceThread
from alarm_service.tracing import Traces

__all__ = ["Load", "Replicas"]

#: Loads every model of a catalog onto a device.
Load = Callable[[Catalog, torch.device], Mapping[str, Model]]


class Replicas:
    """Runs what waits on any of several devices, whichever is free."""

    def __init__(
        self,
        devices: Sequence[torch.device],
        waiting: Waiting,
        metrics: Metrics,
        life: Life,
        traces: Traces,
    ) -> None:
        self.devices = devices
        self._waiting = waiting
        self._metrics = metrics
        self._life = life
        self._traces = traces
        self._threads: list[DeviceThread] = []

    @property
    def tokens_per_s(self) -> float:
        """What all devices together run; 0 before the first batch."""
        return sum(thread.tokens_per_s for thread in self._threads)

    def load(self, load: Load, catalog: Catalog, *, is_measured: bool) -> Mapping[str, Model]:
        """Load the models onto each device, and return the first's, which stand for all.

        ``is_measured`` runs batches on a GPU to find each model's budget of tokens; on a CPU a
        batch is bound by its arithmetic long before the budget that there is.
        """
        replicas = [load(catalog, device) for device in self.devices]
        for models in replicas:
            on_device = {
                key: model for key, model in models.items() if not isinstance(model, DirectModel)
            }
            thread = DeviceThread(on_device, self._waiting, self._metrics, self._life, self._traces)
            self._threads.append(thread)
        if is_measured and self.devices[0].type == "cuda":
            for key, model in replicas[0].items():
                if not isinstance(model, DirectModel):
                    sample = warm_up_sample(catalog.models[key])
                    self._waiting.budgets[key] = measured_budget(model, sample)
        return replicas[0]

    def start(self) -> None:
        """Start taking batches."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads to end once their queue is closed."""
        for thread in self._threads:
            thread.join(timeout_s)
