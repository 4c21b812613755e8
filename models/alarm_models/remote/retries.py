"""When to try a request again: pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["delay_s", "is_worth_retrying"]

_FIRST_S, _LONGEST_S = 0.25, 30.0

#: Not now, rather than not at all; 500 is what a server says that lost one batch.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_worth_retrying(status: int) -> bool:
    """Say whether the same request may succeed later."""
    return status in _PASSING


def delay_s(attempt: int, headers: Mapping[str, str], chance: float) -> float:
    """Return how long to wait after a failed attempt, counted from 0.

    The waits double; ``chance``, in [0, 1), takes up to half of one away, so that callers who
    failed together do not come back together. A ``Retry-After`` in seconds is the least.
    """
    wait = min(_FIRST_S * 2.0**attempt, _LONGEST_S) * (1 - chance / 2)
    asked = headers.get("Retry-After", "")
    return max(wait, min(float(asked), _LONGEST_S)) if asked.isascii() and asked.isdigit() else wait
