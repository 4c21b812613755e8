"""The one thread that owns the device and runs batch after batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import structlog
import torch

from alarm_models.errors import SampleError
from alarm_models.features import Features
from alarm_models.rewards import RewardModel
from alarm_service.errors import Broken
from alarm_service.scheduling.batching import Waiting
from alarm_service.scheduling.life import Life
from alarm_service.scheduling.watchdog import Watchdog
from alarm_service.scheduling.work import Outcome, Work
from alarm_service.telemetry.metrics import Metrics
from alarm_service.telemetry.tracing import Traces

__all__ = ["DeviceThread"]

_log = structlog.get_logger()


class DeviceThread:
    """Runs what waits on one device, each model by its replica of that ``index``.

    A batch that raises is split in halves and tried again, down to single samples; only a sample
    that fails alone fails. Should the thread itself die, or a forward pass take longer than
    ``forward_timeout_s`` (0: as long as it likes), all callers hear of it at once.
    """

    def __init__(
        self,
        index: int,
        waiting: Waiting,
        metrics: Metrics,
        life: Life,
        traces: Traces,
        *,
        forward_timeout_s: float,
    ) -> None:
        self._index = index
        self._waiting = waiting
        self._metrics = metrics
        self._life = life
        self._traces = traces
        self._forward_timeout_s = forward_timeout_s
        self._watchdog = Watchdog(forward_timeout_s, self._hangs) if forward_timeout_s else None
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        #: What runs now; nothing once it has run, so that no model is held for its sake.
        self._batch: list[Work] = []
        self.tokens_per_s = 0.0

    def start(self) -> None:
        """Start taking batches."""
        self._thread.start()
        if self._watchdog is not None:
            self._watchdog.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end once its queue is closed."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._watchdog is not None:
            self._watchdog.close()

    def _run(self) -> None:
        try:
            while (batch := self._waiting.take()) is not None:
                self._batch = batch
                with self._metrics.on_device():
                    self._run_batch(batch)
                self._batch = batch = []
        except BaseException as death:  # whatever ends this thread, its callers must not hang
            self._lost(Broken(f"the thread that owns the device died: {death!r}", retry_after_s=5))

    def _hangs(self) -> None:
        names = {work.model.name for work in self._batch}
        message = (
            f"a forward pass of {', '.join(names)} takes longer than {self._forward_timeout_s:g} s "
            "(--forward-timeout-s): the server must be started again"
        )
        self._lost(Broken(message, retry_after_s=5))

    def _lost(self, reason: Broken) -> None:
        """Tell everybody that the device is lost: those who wait, and those who come."""
        self._life.death = reason
        _log.critical("device lost", error=reason.message)
        for work in self._batch:
            work.deliver(reason)
        self._waiting.close(reason)

    def _run_batch(self, batch: list[Work]) -> None:
        name = batch[0].model.name
        model = batch[0].model.on_device(self._index)
        started = time.monotonic()
        self._metrics.batch_taken(name, batch, started)
        pending = [batch]
        while pending:
            part = pending.pop()
            try:
                outcomes = self._scored(name, model, part)
            except torch.AcceleratorError:
                raise  # the device is lost: nothing that comes after could run
            except Exception as error:  # a model may raise anything; its neighbours go on
                _forget_failed_batch(error)
                self._metrics.batch_failed(name)
                _log.warning(
                    "forward failed",
                    model=name,
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

    def _scored(self, name: str, model: RewardModel, works: Sequence[Work]) -> list[Outcome]:
        features = [work.features for work in works]
        watching = nullcontext() if self._watchdog is None else self._watchdog.watching()
        with self._metrics.forwarding(name), watching:
            outputs = model.forward(features)
        if len(outputs) != len(works):
            raise RuntimeError(f"{len(outputs)} outputs for {len(works)} samples")
        with self._metrics.reading(name):
            return _read(model, features, outputs)

    def _observe(self, batch: Sequence[Work], seconds: float) -> None:
        num_tokens = sum(work.features.num_tokens for work in batch)
        self._metrics.batch_done(batch[0].model.name, num_tokens)
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
