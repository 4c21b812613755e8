"""Times two kernels that compute the same thing, to choose one when a model is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

__all__ = ["LEAST_GAIN", "measured_gain"]

#: A kernel must be faster than the default by this factor: with less, the choice is of no use.
LEAST_GAIN = 1.05

#: Turns that are measured: at least, and at most unless they take longer than that many seconds.
_LEAST_TURNS, _MOST_TURNS, _LONGEST_S = 9, 15, 0.1


def measured_gain(default: Callable[[], object], other: Callable[[], object]) -> float:
    """Return the factor by which ``other`` is faster; both have run before, as a warm-up.

    They take turns. A call is sometimes interrupted by another process, so the gain is the smaller
    one of two estimates: the ratio of the least times, and the median ratio of a turn.
    """
    turns: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(turns) < _LEAST_TURNS or (
        len(turns) < _MOST_TURNS and time.perf_counter() - started < _LONGEST_S
    ):
        turns.append((_seconds(default), _seconds(other)))
    by_least = min(one for one, _ in turns) / min(one for _, one in turns)
    return min(by_least, median(one / another for one, another in turns))


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
