"""Times the kernels that compute the same thing, to choose one when a model is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["LEAST_GAIN", "least_seconds"]

#: A kernel must be faster than the default by this factor, so that noise does not decide.
LEAST_GAIN = 1.2

_NUM_MEASURED = 4

#: Once one kernel takes this many times another's time, the choice is clear.
_CLEAR_RATIO = 2.0


def least_seconds(*calls: Callable[[], object]) -> list[float]:
    """Return the least seconds of each call, in turns; each has run before, as a warm-up."""
    least = [float("inf")] * len(calls)
    for _ in range(_NUM_MEASURED):
        for index, call in enumerate(calls):
            started = time.perf_counter()
            call()
            least[index] = min(least[index], time.perf_counter() - started)
        if max(least) > _CLEAR_RATIO * min(least):
            break
    return least
