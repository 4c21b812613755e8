"""When to try again: pure arithmetic, no clock and no dice of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Retries:
    """How patient a call is within its deadline.

    Delays double from `first` to `longest` seconds, or to `longest_reconnect` where no connection
    could be made or one broke. Both are tried again until the deadline, unless `max_reconnects`
    says how many tries there are after connection errors.
    """

    first: float = 0.5
    longest: float = 30.0
    max_reconnects: int | None = None
    longest_reconnect: float = 5.0

    def __post_init__(self) -> None:
        for name in ("first", "longest", "longest_reconnect"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be seconds of at least 0, got {value!r}")
        if self.max_reconnects is not None and self.max_reconnects < 0:
            raise ValueError(f"max_reconnects must be at least 0, got {self.max_reconnects!r}")

    @property
    def of_connections(self) -> Retries:
        """The same, with the delays after connection errors."""
        return replace(self, longest=min(self.longest, self.longest_reconnect))


def retry_delay(
    retries: Retries,
    attempt: int,
    *,
    time_left: float,
    dice: float,
    retry_after: float | None = None,
) -> float | None:
    """Seconds to wait after the failed `attempt` (from 0), or None where no time is left.

    `dice` in [0, 1) spreads callers: a wait of our own lies between half and all of the doubled
    delay, one that the server named between one and one and a half times its word. A wait of our
    own is cut short so that the time that is left is used up by tries; below half of `first` none
    is worth it.
    """
    if retry_after is None:
        if time_left <= retries.first / 2:
            return None
        own = min(retries.longest, retries.first * 2.0 ** min(attempt, 30))
        delay = min(own * (0.5 + dice / 2), time_left / 2)
    else:
        delay = max(retry_after, retries.first / 2) * (1 + dice / 2)
        delay = min(delay, max(retry_after, time_left * 0.9))
    return delay if delay < time_left else None


def parse_retry_after(value: str | None, wall_clock: Callable[[], float]) -> float | None:
    """Seconds that a Retry-After header names, as a number or a date; None if it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        from email.utils import parsedate_to_datetime  # rare, and slow to import

        try:
            seconds = parsedate_to_datetime(value).timestamp() - wall_clock()
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
