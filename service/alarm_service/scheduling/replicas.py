"""What each device runs: a replica of every model, and the thread that takes batches for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from alarm_models.rewards import DirectModel, Model
from alarm_service.catalog import ServedModel
from alarm_service.scheduling.batching import Waiting
from alarm_service.scheduling.budget import measured_budget
from alarm_service.scheduling.life import Life
from alarm_service.scheduling.loaded import Loaded
from alarm_service.scheduling.loading import warm_up_sample
from alarm_service.scheduling.runtime import DeviceThread
from alarm_service.telemetry.metrics import Metrics
from alarm_service.telemetry.tracing import Traces

__all__ = ["Load", "Replicas"]

#: Loads models, by their keys, onto a device.
Load = Callable[[Mapping[str, ServedModel], torch.device], Mapping[str, Model]]


class Replicas:
    """Runs what waits on any of several devices, whichever is free."""

    def __init__(
        self,
        devices: Sequence[torch.device],
        waiting: Waiting,
        metrics: Metrics,
        life: Life,
        traces: Traces,
        *,
        forward_timeout_s: float,
    ) -> None:
        self.devices = devices
        self._threads = [
            DeviceThread(
                index,
                waiting,
                metrics,
                life,
                traces,
                forward_timeout_s=forward_timeout_s,
                is_cpu=device.type == "cpu",
                on_lost=self._has_others,
            )
            for index, device in enumerate(devices)
        ]

    @property
    def num_given_up(self) -> int:
        """How many forward passes were given up and still run."""
        return sum(thread.num_given_up() for thread in self._threads)

    def is_running(self) -> bool:
        """Say whether a device's thread runs; Python must not be finalized while one does.

        A forward pass cannot be interrupted: a process that is to end meanwhile ends by `os._exit`.
        """
        return any(thread.is_running() for thread in self._threads)

    def load(
        self, load: Load, wanted: Mapping[str, ServedModel], made: list[Model], *, is_measured: bool
    ) -> dict[str, Loaded]:
        """Load models onto each device; those that need none are loaded once.

        Each model is put into ``made`` as soon as it is there: where a later one cannot be loaded,
        the caller has these to close. ``is_measured`` runs batches on a GPU to find each model's
        budget of tokens; on a CPU a batch is bound by its arithmetic long before the budget that
        there is.
        """
        replicas: dict[str, list[Model]] = {key: [] for key in wanted}
        asked = wanted
        for device in self.devices:
            models = load(asked, device) if asked else {}
            made += models.values()
            for key, model in models.items():
                replicas[key].append(model)
            asked = {
                key: wanted[key]
                for key, model in models.items()
                if not isinstance(model, DirectModel)
            }
        is_measured = is_measured and self.devices[0].type == "cuda"
        return {
            key: Loaded(
                served,
                tuple(replicas[key]),
                _budget(replicas[key][0], served) if is_measured else None,
                time.time(),
            )
            for key, served in wanted.items()
        }

    def start(self) -> None:
        """Start taking batches."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads to end once their queue is closed."""
        for thread in self._threads:
            thread.join(timeout_s)

    def _has_others(self) -> bool:
        return not all(thread.is_lost for thread in self._threads)


def _budget(model: Model, served: ServedModel) -> int | None:
    if isinstance(model, DirectModel):
        return None
    return measured_budget(model, warm_up_sample(served))
