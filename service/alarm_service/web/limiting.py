"""How much each caller may send in a minute."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from alarm_service.errors import RateLimited

__all__ = ["Allowance", "RateLimits"]

_MINUTE_S = 60.0


@dataclass(slots=True)
class Allowance:
    """A minute's worth that fills steadily; ``level`` is what was left at the time ``since``.

    What costs more than a minute's worth passes once all of it is there, and leaves a debt; what
    costs nothing always passes.
    """

    per_minute: float
    level: float
    since: float

    def take(self, cost: float, now: float) -> float:
        """Take ``cost`` and return 0; or take nothing and return the seconds until it is there."""
        rate = self.per_minute / _MINUTE_S
        self.level = min(self.per_minute, self.level + (now - self.since) * rate)
        self.since = now
        missing = min(cost, self.per_minute) - self.level
        if cost > 0 and missing > 0:
            return missing / rate
        self.level -= cost
        return 0.0


class RateLimits:
    """One allowance a caller, of one thing; callers are few, as each brought a key."""

    def __init__(self, per_minute: int, thing: str, now: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._thing = thing
        self._now = now
        self._allowances: dict[int | None, Allowance] = {}

    def charge(self, caller: int | None, cost: float) -> None:
        """Take a caller's cost; raise `RateLimited` where it has sent too much."""
        now = self._now()
        fresh = Allowance(self._per_minute, self._per_minute, now)
        wait_s = self._allowances.setdefault(caller, fresh).take(cost, now)
        if wait_s > 0:
            raise RateLimited(
                f"this key may send {self._per_minute} {self._thing} a minute; "
                f"send this again in {wait_s:.1f} s",
                retry_after_s=math.ceil(wait_s),
            )
