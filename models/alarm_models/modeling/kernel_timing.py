"""Compares two kernels that compute the same thing, to choose one when a model is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

__all__ = ["LEAST_GAIN", "TOLERANCE", "is_exact", "measured_gain"]

#: The largest difference between two kernels, as a share of the outputs' size, by dtype.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

#: A kernel must be faster than the default by this factor: with less, the choice is of no use.
LEAST_GAIN = 1.05

#: Turns that are measured, and seconds that all of them take, at least: another process may keep a
#: core for some milliseconds.
_LEAST_TURNS, _LEAST_S = 9, 0.03


def is_exact(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether outputs of a kernel differ from those of another one by rounding only."""
    error = (actual - expected).float().norm()
    return bool(error <= TOLERANCE[expected.dtype] * expected.float().norm())


def measured_gain(default: Callable[[], object], other: Callable[[], object]) -> float:
    """Return the factor by which ``other`` is faster; both have run before, as a warm-up.

    They take turns. A call is sometimes interrupted by another process, so the gain is the smaller
    one of two estimates: the ratio of the least times, and the median ratio of a turn. While other
    processes keep cores busy, an operation waits for its slowest thread, and all calls take equally
    long; if one thread is as fast as all, the gain is that of one.
    """
    turns = _take_turns(default, other)
    num_threads = torch.get_num_threads()
    if num_threads > 1:
        torch.set_num_threads(1)
        try:
            of_one = _take_turns(default, other)
        finally:
            torch.set_num_threads(num_threads)
        if median(one for one, _ in of_one) <= median(one for one, _ in turns):
            turns = of_one
    by_least = min(one for one, _ in turns) / min(one for _, one in turns)
    return min(by_least, median(one / another for one, another in turns))


def _take_turns(
    default: Callable[[], object], other: Callable[[], object]
) -> list[tuple[float, float]]:
    """Return the seconds of both calls in each turn."""
    turns: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(turns) < _LEAST_TURNS or time.perf_counter() - started < _LEAST_S:
        turns.append((_seconds(default), _seconds(other)))
    return turns


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
