"""Rate limiting: a token bucket per API key, for requests and for tokens per minute."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from alarm_service.api.auth import ADMIN, CALLER_INDEX, FREE_PATHS
from alarm_service.api.body_limit import BODY_BYTES
from alarm_service.api.error_handlers import error_response
from alarm_service.errors import RateLimited, ServiceError

__all__ = ["RateLimitMiddleware", "RateLimiter", "TokenBucket", "body_tokens", "one_request"]

_BYTES_PER_TOKEN = 4

_MINUTE_S = 60.0


@dataclass(slots=True)
class TokenBucket:
    """A token bucket that is refilled over a minute; ``level`` is what was left at ``since``.

    A cost above the bucket's capacity passes once the bucket is full, and leaves it negative; a
    cost of 0 always passes.
    """

    per_minute: float
    level: float
    since: float

    def consume(self, cost: float, now: float) -> float:
        """Take ``cost`` and return 0, or take nothing and return the seconds to wait."""
        rate = self.per_minute / _MINUTE_S
        self.level = min(self.per_minute, self.level + (now - self.since) * rate)
        self.since = now
        missing = min(cost, self.per_minute) - self.level
        if cost > 0 and missing > 0:
            return missing / rate
        self.level -= cost
        return 0.0


class RateLimiter:
    """A token bucket for each caller; callers are few, since each has a key."""

    def __init__(self, per_minute: int, thing: str, now: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._thing = thing
        self._now = now
        self._buckets: dict[int | None, TokenBucket] = {}

    def consume(self, caller: int | None, cost: float) -> None:
        """Take the cost from a caller's bucket; raise `RateLimited` where it is empty."""
        now = self._now()
        fresh = TokenBucket(self._per_minute, self._per_minute, now)
        wait_s = self._buckets.setdefault(caller, fresh).consume(cost, now)
        if wait_s > 0:
            who = "callers without a key together" if caller is None else "this key"
            raise RateLimited(
                f"{who} may send {self._per_minute} {self._thing} a minute; "
                f"send this again in {wait_s:.1f} s",
                retry_after_s=math.ceil(wait_s),
            )


class RateLimitMiddleware:
    """Answers 429 to a caller over its rate limit.

    Health, metrics and admin routes have none, nor have ``open_paths``, such as the page's files.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: RateLimiter,
        cost: Callable[[Scope], float],
        open_paths: frozenset[str],
    ) -> None:
        self._app = app
        self._limits = limits
        self._cost = cost
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request, or answer 429."""
        if scope["type"] == "http" and not self._is_free(scope["path"]):
            try:
                self._limits.consume(scope.get(CALLER_INDEX), self._cost(scope))
            except ServiceError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_free(self, path: str) -> bool:
        return path in self._open_paths or path.startswith((*FREE_PATHS, ADMIN))


def one_request(_: Scope) -> float:
    """Return the cost of any request."""
    return 1


def body_tokens(scope: Scope) -> float:
    """Return an estimate of the tokens in a body that was read."""
    return float(scope.get(BODY_BYTES, 0) // _BYTES_PER_TOKEN)
