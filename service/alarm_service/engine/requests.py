"""QueuedSample, PendingCall and ModelScores: one call's samples on their way through a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from alarm_models.errors import SampleError
from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_models.types import Score
from alarm_service.engine.caller import INTERNAL, Caller
from alarm_service.engine.model_set import LoadedModel
from alarm_service.errors import ServiceError

__all__ = ["ModelScores", "Outcome", "PendingCall", "QueuedSample", "TimedOut"]


class TimedOut(SampleError):
    """A sample's forward pass did not end in time, or ended the thread that ran it: final."""


#: What becomes of one sample at one model.
Outcome = Score | SampleError | ServiceError


@dataclass(eq=False, slots=True)
class QueuedSample:
    """One sample that waits for a model's forward pass.

    ``deliver`` takes the outcome, on any thread; ``is_wanted`` turns false when the caller has
    gone. ``since`` is a monotonic time in seconds; ``cost`` what a batch costs the model; ``trace``
    the trace that its forward pass belongs to; ``charged`` the device time that its ``caller`` was
    charged as it was taken, in seconds, and ``weight`` what a second of it costs that caller.
    """

    model: LoadedModel
    features: ModelInput
    deliver: Callable[[Outcome], None]
    is_active: Callable[[], bool]
    since: float
    cost: BatchLayout = BatchLayout.PADDED
    trace: object = None
    caller: Caller = INTERNAL
    charged: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelScores:
    """One outcome a sample, in order, and the model that they are of."""

    outcomes: Sequence[Score | SampleError]
    model: str
    fingerprint: str

    @property
    def num_tokens(self) -> int:
        """Count the tokens as if each sample were scored alone."""
        return sum(one.num_tokens for one in self.outcomes if isinstance(one, Score))

    @property
    def num_computed_tokens(self) -> int:
        """Count the tokens that the device ran, padding not counted."""
        return sum(one.num_computed_tokens for one in self.outcomes if isinstance(one, Score))


class PendingCall:
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

    def result_callback(self, index: int) -> Callable[[Outcome], None]:
        """Return the function that takes sample ``index``'s outcome."""
        return partial(self._receive, index)

    def is_active(self) -> bool:
        """Say whether anybody still waits."""
        return not self._cancelled

    def cancel(self) -> None:
        """Want nothing more."""
        self._cancelled = True

    async def wait(self) -> list[Outcome]:
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
