"""The one thread that owns the device and runs batch after batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog
import torch

from alarm_models.errors import SampleError
from alarm_models.features import Features
from alarm_models.rewards import RewardModel
from alarm_service.batching import Waiting
from alarm_service.errors import Broken
from alarm_service.life import Life
from alarm_service.metrics import Metrics
from alarm_service.tracing import Traces
from alarm_service.work import Outcome, Work

__all__ = ["DeviceThread"]

_log = structlog.get_logger()


class DeviceThread:
    """Runs what waits on one device.

    A batch that raises is split in halves and tried again, down to single samples; only a sample
    that fails alone fails. Should the thread itself die, all callers hear of it at once.
    """

    def __init__(
        self,
        models: Mapping[str, RewardModel],
        waiting: Waiting,
        metrics: Metrics,
        life: Life,
        traces: Traces,
    ) -> None:
        self._models = models
        self._waiting = waiting
        self._metrics = metrics
        self._life = life
        self._traces = traces
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self.tokens_per_s = 0.0

    def start(self) -> None:
        """Start taking batches."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end once its queue is closed."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        batch: list[Work] | None = None
        try:
            while (batch := self._waiting.take()) is not None:
                with self._metrics.on_device():
                    self._run_batch(batch)
        except BaseException as death:  # whatever ends this thread, its callers must not hang
            self._life.death = death
            _log.critical("device thread died", error=repr(death))
            reason = Broken(f"the thread that owns the device died: {death!r}", retry_after_s=5)
            for work in batch or ():
                work.deliver(reason)
            self._waiting.close(reason)

    def _run_batch(self, batch: list[Work]) -> None:
        model = self._models[batch[0].model]
        started = time.monotonic()
        self._metrics.batch_taken(batch[0].model, batch, started)
        pending = [batch]
        while pending:
            part = pending.pop()
            try:
                outcomes = self._scored(model, part)
            except torch.AcceleratorError:
                raise  # the device is lost: nothing that comes after could run
            except Exception as error:  # a model may raise anything; its neighbours go on
                _forget_failed_batch(error)
                self._metrics.batch_failed(part[0].model)
                _log.warning(
                    "forward failed",
                    model=part[0].model,
                    num_samples=len(part),
                    error=repr(error)[:500],
                )
                if len(part) > 1:
                    middle = len(part) // 2
                    pending += [part[middle:], part[:middle]]
                    continue
                outcomes = [SampleError("model_failed", f"the model failed: {error!r}"[:500])]
            for work, outcome in zip(part, outcomes, strict=True):
                work.deliver(outcome)
        ended = time.monotonic()
        self._traces.batch(batch, started, ended)
        self._observe(batch, ended - started)

    def _scored(self, model: RewardModel, works: Sequence[Work]) -> list[Outcome]:
        features = [work.features for work in works]
        with self._metrics.forwarding(works[0].model):
            outputs = model.forward(features)
        if len(outputs) != len(works):
            raise RuntimeError(f"{len(outputs)} outputs for {len(works)} samples")
        with self._metrics.reading(works[0].model):
            return _read(model, features, outputs)

    def _observe(self, batch: Sequence[Work], seconds: float) -> None:
        num_tokens = sum(work.features.num_tokens for work in batch)
        self._metrics.batch_done(batch[0].model, num_tokens)
        rate = num_tokens / max(seconds, 1e-6)
        self.tokens_per_s = rate if not self.tokens_per_s else 0.9 * self.tokens_per_s + 0.1 * rate


def _read(
    model: RewardModel, features: Sequence[Features], outputs: Sequence[torch.Tensor]
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for one, rows, num_computed in zip(
        features, outputs, model.num_computed(features), strict=True
    ):
        try:
            score = model.read(one, rows)
            outcomes.append(replace(score, num_computed_tokens=num_computed))
        except SampleError as error:
            outcomes.append(error)
    return outcomes


def _forget_failed_batch(error: Exception) -> None:
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        torch.cuda.empty_cache()
