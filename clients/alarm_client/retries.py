"""When to try again: pure arithmetic, no clock and no dice of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retries:
    """How patient a call is within its deadline.

    Delays double from `first` to `longest` seconds. A refusing server (408, 429, 502, 503, 504) is
    asked until the deadline; one that does not answer is tried `max_reconnects` times again.
    """

    first: float = 0.5
    longest: float = 30.0
    max_reconnects: int = 6


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
    delay, one that the server named between one and one and a half times its word.
    """
    own = min(retries.longest, retries.first * 2.0 ** min(attempt, 30))
    if retry_after is None:
        delay = own * (0.5 + dice / 2)
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
        except ValueError:
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
