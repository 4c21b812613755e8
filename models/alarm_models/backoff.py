"""Exponential backoff with jitter: how long to wait before a request is retried."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

__all__ = ["backoff_s"]

#: ASCII digits, of which `\d` and `str.isdigit` accept others too.
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")

#: Larger exponents change nothing: the limit is reached long before.
_MAX_EXPONENT = 64


def backoff_s(
    attempt: int,
    headers: Mapping[str, str] | None = None,
    jitter: float | None = None,
    *,
    first_s: float = 0.25,
    max_s: float = 30.0,
) -> float:
    """Return the seconds to wait after a failed attempt, counted from 0.

    The wait doubles from ``first_s`` to ``max_s``. ``jitter``, in [0, 1) and random by default,
    takes up to half of it away, so that clients that failed together do not retry together. A
    ``Retry-After`` in the response's ``headers``, in seconds or as a date, is the least, up to
    ``max_s``.
    """
    jitter = random.random() if jitter is None else jitter
    wait = min(first_s * 2.0 ** min(attempt, _MAX_EXPONENT), max_s) * (1 - jitter / 2)
    return max(wait, min(_retry_after_s((headers or {}).get("Retry-After", "")), max_s))


def _retry_after_s(asked: str) -> float:
    """Return the seconds that a server asks to wait; 0 if it asks for none, or unreadably."""
    if _SECONDS.fullmatch(asked):
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
