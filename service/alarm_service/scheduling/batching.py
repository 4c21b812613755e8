"""What waits for the devices: the request queue, by model and by caller."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field

from alarm_models.errors import SampleError
from alarm_service.errors import ServiceError
from alarm_service.scheduling.caller import INTERNAL, Caller
from alarm_service.scheduling.choosing import in_turn, take_batch, weights_of
from alarm_service.scheduling.fairness import VirtualTimes
from alarm_service.scheduling.loaded import Loaded
from alarm_service.scheduling.usage import TimedOutSamples, Usage, predicted_s
from alarm_service.scheduling.work import TimedOut, Work

__all__ = ["Waiting"]

#: How long a server has several callers after another one than before sent or was served.
_SEVERAL_S = 60.0

#: A sample is refused where it is expected to take so many times what it may: the prediction is
#: rough, and whoever is let through is still watched.
_REFUSED_TIMES = 2.0


@dataclass(slots=True)
class Waiting:
    """The work that has arrived, by model; the devices' threads take batches from it.

    Models have fair shares of the devices' time, measured as their batches run, and within a model
    its callers have. ``forward_timeout_s`` (0: none) is what a forward pass may take: samples that
    took longer before, or are sure to, fail at once.
    """

    #: The tokens of a batch, for models that have no number of their own.
    max_batch_tokens: int
    forward_timeout_s: float = 0.0
    now: Callable[[], float] = time.monotonic
    timed_out: TimedOutSamples = field(default_factory=TimedOutSamples)
    _queues: dict[Loaded, dict[Caller, deque[Work]]] = field(default_factory=dict)
    _models: VirtualTimes[str] = field(default_factory=VirtualTimes)
    _usage: dict[str, Usage] = field(default_factory=dict)
    _last_caller: Caller = INTERNAL
    _several_since: float = -_SEVERAL_S
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closed: ServiceError | None = None

    def put(self, works: Iterable[Work]) -> None:
        """Add work; once closed, its callers hear why at once."""
        works = list(works)
        refused: list[tuple[Work, ServiceError | SampleError]] = []
        with self._changed:
            for work in works:
                reason = self._closed or self._refusal(work)
                if reason is None:
                    self._add(work)
                else:
                    refused.append((work, reason))
            self._changed.notify()
        for work, reason in refused:
            work.deliver(reason)

    def take(self, busy: Callable[[], Container[str]] = tuple) -> list[Work] | None:
        """Wait for work and take one batch of one model, in fair turns; None once closed.

        Models that are ``busy`` are left to who runs them.
        """
        with self._changed:
            while True:
                self._drop_unwanted()
                left_out = busy() if self._queues else ()
                models = [model for model in self._queues if model.name not in left_out]
                if models:
                    return self._take(models)
                if self._closed is not None:
                    return None
                self._changed.wait()

    def wake(self) -> None:
        """Have those that wait for work look again, as other models are busy now."""
        with self._changed:
            self._changed.notify_all()

    def ran(self, batch: Sequence[Work], num_computed: Sequence[int], seconds: float) -> None:
        """Charge callers and model what a batch really took, in place of what was expected."""
        total = sum(num_computed)
        with self._changed:
            usage = self._usage_of(batch[0].model.name)
            usage.measure(total, seconds)
            expected = 0.0
            for work, num_tokens in zip(batch, num_computed, strict=True):
                expected += work.charged
                part = seconds * num_tokens / total if total else 0.0
                usage.callers.charge(work.caller, (part - work.charged) * work.weight)
                work.charged = part
            self._models.charge(batch[0].model.name, seconds - expected)

    def close(self, reason: ServiceError) -> None:
        """Take no more work, and give what waits the reason."""
        with self._changed:
            self._closed = self._closed or reason
            left = [
                work
                for queues in self._queues.values()
                for works in queues.values()
                for work in works
            ]
            self._queues.clear()
            self._changed.notify_all()
        for work in left:
            work.deliver(reason)

    def num_waiting(self) -> int:
        """Count the samples that wait."""
        with self._changed:
            return sum(len(works) for queues in self._queues.values() for works in queues.values())

    def num_callers(self) -> int:
        """Count the callers whose samples wait."""
        with self._changed:
            return len({caller for queues in self._queues.values() for caller in queues})

    def tokens_per_s(self, model: str) -> float:
        """Return how many tokens a second a model lately ran; 0 before that is known."""
        with self._changed:
            return self._usage_of(model).tokens_per_s

    def _add(self, work: Work) -> None:
        self._queues.setdefault(work.model, {}).setdefault(work.caller, deque()).append(work)
        self._note(work.caller)

    def _note(self, caller: Caller) -> None:
        """Note that a caller sends or is served, and so whether there are several."""
        if caller not in (self._last_caller, INTERNAL):
            if self._last_caller != INTERNAL:
                self._several_since = self.now()
            self._last_caller = caller

    def _refusal(self, work: Work) -> SampleError | None:
        if work in self.timed_out:
            return TimedOut(
                "model_failed",
                f"model {work.model.name!r} did not get through this sample before; "
                "it is not run again: do not send it again",
            )
        best = self._usage_of(work.model.name).best_tokens_per_s
        if not self.forward_timeout_s or not best:
            return None
        num_tokens = work.features.num_tokens
        seconds = predicted_s(num_tokens, best, work.model.hidden_size)
        if seconds <= _REFUSED_TIMES * self.forward_timeout_s:
            return None
        return SampleError(
            "too_long",
            f"the sample's {num_tokens} tokens would take about {seconds:.0f} s, and one forward "
            f"pass may take {self.forward_timeout_s:g} s (--forward-timeout-s): shorten it, or "
            "set the model's max_tokens",
        )

    def _drop_unwanted(self) -> None:
        for model, queues in list(self._queues.items()):
            for caller, works in list(queues.items()):
                wanted = [work for work in works if work.is_wanted()]
                if not wanted:
                    del queues[caller]
                elif len(wanted) < len(works):
                    queues[caller] = deque(wanted)
            if not queues:
                del self._queues[model]

    def _take(self, models: Sequence[Loaded]) -> list[Work]:
        model = min(models, key=self._turn_of)
        queues = self._queues[model]
        usage = self._usage_of(model.name)
        budget = model.budget or self.max_batch_tokens
        ordered = in_turn(queues, usage.callers.start, usage.seconds_per_token, budget)
        batch = take_batch(ordered, budget, self._enough_tokens(usage))
        self._models.serve(model.name)
        usage.callers.serve(batch[0].caller)
        weights = weights_of(list(queues))
        for work in batch:
            work.weight = weights[work.caller]
            work.charged = work.features.num_tokens * usage.seconds_per_token
            usage.callers.charge(work.caller, work.charged * work.weight)
            self._models.charge(model.name, work.charged)
            self._note(work.caller)
        self._remove(model, batch)
        usage.callers.forget(self._queues.get(model, {}))
        return batch

    def _turn_of(self, model: Loaded) -> tuple[float, float]:
        oldest = min(works[0].since for works in self._queues[model].values())
        return self._models.start(model.name), oldest

    def _remove(self, model: Loaded, batch: Sequence[Work]) -> None:
        taken = set(map(id, batch))
        queues = self._queues[model]
        for caller in {work.caller for work in batch}:
            left = deque(work for work in queues[caller] if id(work) not in taken)
            if left:
                queues[caller] = left
            else:
                del queues[caller]
        if not queues:
            del self._queues[model]
        if self._queues:
            self._changed.notify()  # for another device

    def _enough_tokens(self, usage: Usage) -> int | None:
        """Return what keeps a batch short while there are several callers; None where not."""
        is_alone = self.now() - self._several_since >= _SEVERAL_S
        return None if is_alone else usage.enough_tokens()

    def _usage_of(self, model: str) -> Usage:
        return self._usage.setdefault(model, Usage())
