"""One call's samples at one model, from the queue back to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from alarm_service.scheduling.work import Outcome

__all__ = ["Job"]


class Job:
    """Collects an outcome a sample, in order, and wakes the caller once when all are there.

    Outcomes arrive on any thread; the event loop is woken once a job, not once a sample. A
    cancelled job wants nothing more, so that its work is dropped from the queue.
    """

    def __init__(self, num_samples: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._outcomes: list[Outcome | None] = [None] * num_samples
        self._num_left = num_samples
        self._lock = threading.Lock()
        self._cancelled = False
        if num_samples == 0:
            self._finished.set_result(None)

    def receiver(self, index: int) -> Callable[[Outcome], None]:
        """Return the function that takes sample ``index``'s outcome."""
        return partial(self._receive, index)

    def is_wanted(self) -> bool:
        """Say whether anybody still waits."""
        return not self._cancelled

    def cancel(self) -> None:
        """Want nothing more."""
        self._cancelled = True

    async def outcomes(self) -> list[Outcome]:
        """Wait for every sample's outcome."""
        await self._finished
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _receive(self, index: int, outcome: Outcome) -> None:
        with self._lock:
            if self._outcomes[index] is not None:
                return
            self._outcomes[index] = outcome
            self._num_left -= 1
            is_last = self._num_left == 0
        if is_last and not self._cancelled:
            with suppress(RuntimeError):  # a loop that is closed has nobody left to wake
                self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)
