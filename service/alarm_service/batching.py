"""What waits for the device, and which of it makes the next batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from alarm_models.errors import SampleError
from alarm_models.features import Features
from alarm_models.sample import Score
from alarm_service.errors import ServiceError

__all__ = ["Outcome", "Waiting", "Work", "take_batch"]

#: What becomes of one sample at one model.
Outcome = Score | SampleError | ServiceError

#: How far beyond the oldest work to look for samples of like length.
_WINDOW = 512


@dataclass(eq=False, slots=True)
class Work:
    """One sample that waits for a model's forward pass.

    ``deliver`` takes the outcome, on any thread; ``is_wanted`` turns false when the caller has
    gone. ``since`` is a monotonic time in seconds.
    """

    model: str
    features: Features
    deliver: Callable[[Outcome], None]
    is_wanted: Callable[[], bool]
    since: float


def take_batch(waiting: Sequence[Work], max_tokens: int) -> list[Work]:
    """Choose the next batch of one model: the oldest work and those nearest to it in length.

    A batch costs its longest sample times its number of samples, padding counted, and stays within
    ``max_tokens``; the oldest work goes even where it alone is more.
    """
    oldest = waiting[0]
    by_length = sorted(waiting[:_WINDOW], key=lambda work: work.features.num_tokens)
    low = high = next(index for index, work in enumerate(by_length) if work is oldest)
    while True:
        shorter = by_length[low - 1] if low > 0 else None
        longer = by_length[high + 1] if high + 1 < len(by_length) else None
        longest = by_length[high].features.num_tokens
        num_next = high - low + 2
        # Shorter neighbours first: they never make the batch wider.
        if shorter is not None and longest * num_next <= max_tokens:
            low -= 1
        elif longer is not None and longer.features.num_tokens * num_next <= max_tokens:
            high += 1
        else:
            return by_length[low : high + 1]


@dataclass(slots=True)
class Waiting:
    """The work that has arrived, by model; the device thread takes batches from it."""

    max_batch_tokens: int
    _by_model: dict[str, deque[Work]] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closed: ServiceError | None = None

    def put(self, works: Iterable[Work]) -> None:
        """Add work; once closed, its callers hear why at once."""
        works = list(works)
        with self._changed:
            closed = self._closed
            if closed is None:
                for work in works:
                    self._by_model.setdefault(work.model, deque()).append(work)
                self._changed.notify()
        if closed is not None:
            for work in works:
                work.deliver(closed)

    def take(self) -> list[Work] | None:
        """Wait for work and take one batch of one model, oldest first; None once closed."""
        with self._changed:
            while True:
                self._drop_unwanted()
                if self._by_model:
                    return self._take()
                if self._closed is not None:
                    return None
                self._changed.wait()

    def close(self, reason: ServiceError) -> None:
        """Take no more work, and give what waits the reason."""
        with self._changed:
            self._closed = self._closed or reason
            left = [work for works in self._by_model.values() for work in works]
            self._by_model.clear()
            self._changed.notify_all()
        for work in left:
            work.deliver(reason)

    def num_waiting(self) -> int:
        """Count the samples that wait."""
        with self._changed:
            return sum(len(works) for works in self._by_model.values())

    def _drop_unwanted(self) -> None:
        for model, works in list(self._by_model.items()):
            wanted = [work for work in works if work.is_wanted()]
            if not wanted:
                del self._by_model[model]
            elif len(wanted) < len(works):
                self._by_model[model] = deque(wanted)

    def _take(self) -> list[Work]:
        works = min(self._by_model.values(), key=lambda works: works[0].since)
        batch = take_batch(list(works), self.max_batch_tokens)
        taken = set(map(id, batch))
        left = deque(work for work in works if id(work) not in taken)
        if left:
            self._by_model[batch[0].model] = left
        else:
            del self._by_model[batch[0].model]
        return batch
