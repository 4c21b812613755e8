"""Exponential backoff with jitter: how long to wait before a request is retried."""

from __future__ import annotations

import random
from collections.abc import Mapping

__all__ = ["backoff_s"]

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
    ``Retry-After`` of whole seconds in the response's ``headers`` is the least, up to ``max_s``.
    """
    jitter = random.random() if jitter is None else jitter
    wait = min(first_s * 2.0 ** min(attempt, _MAX_EXPONENT), max_s) * (1 - jitter / 2)
    asked = (headers or {}).get("Retry-After", "")
    return max(wait, min(float(asked), max_s)) if asked.isascii() and asked.isdigit() else wait
