"""What waits for the device, by model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from alarm_service.errors import ServiceError
from alarm_service.scheduling.choosing import take_batch
from alarm_service.scheduling.loaded import Loaded
from alarm_service.scheduling.work import Work

__all__ = ["Waiting"]


@dataclass(slots=True)
class Waiting:
    """The work that has arrived, by model; the devices' threads take batches from it."""

    #: The tokens of a batch, for models that have no number of their own.
    max_batch_tokens: int
    _by_model: dict[Loaded, deque[Work]] = field(default_factory=dict)
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
        budget = works[0].model.budget or self.max_batch_tokens
        batch = take_batch(list(works), budget)
        taken = set(map(id, batch))
        left = deque(work for work in works if id(work) not in taken)
        if left:
            self._by_model[batch[0].model] = left
            self._changed.notify()  # for another device
        else:
            del self._by_model[batch[0].model]
        return batch
