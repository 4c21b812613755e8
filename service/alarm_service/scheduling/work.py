"""One sample's way through a model's forward pass, and what comes of a request's samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alarm_models.errors import SampleError
from alarm_models.features import BatchCost, Features
from alarm_models.sample import Score
from alarm_service.errors import ServiceError
from alarm_service.scheduling.caller import INTERNAL, Caller
from alarm_service.scheduling.loaded import Loaded

__all__ = ["Outcome", "Scores", "TimedOut", "Work"]


class TimedOut(SampleError):
    """A sample's forward pass did not end in time, or ended the thread that ran it: final."""


#: What becomes of one sample at one model.
Outcome = Score | SampleError | ServiceError


@dataclass(eq=False, slots=True)
class Work:
    """One sample that waits for a model's forward pass.

    ``deliver`` takes the outcome, on any thread; ``is_wanted`` turns false when the caller has
    gone. ``since`` is a monotonic time in seconds; ``cost`` what a batch costs the model; ``trace``
    the trace that its forward pass belongs to; ``charged`` the device time that its ``caller`` was
    charged as it was taken, in seconds, and ``weight`` what a second of it costs that caller.
    """

    model: Loaded
    features: Features
    deliver: Callable[[Outcome], None]
    is_wanted: Callable[[], bool]
    since: float
    cost: BatchCost = BatchCost.PADDED
    trace: object = None
    caller: Caller = INTERNAL
    charged: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Scores:
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
