"""Running figures in constant memory: pure arithmetic that the metrics show."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["BusyTime", "RunningCorrelation"]


class RunningCorrelation:
    """Pearson's correlation of pairs, of which the older count less.

    A pair's weight halves every ``half_life`` pairs. The mean and the sums of squares are updated
    as West (1979) does for weighted data, so that nothing is lost to large means.
    """

    def __init__(self, half_life: float, min_pairs: int) -> None:
        self._decay: float = 0.5 ** (1 / half_life)
        self._min_pairs = min_pairs
        self._num_pairs = 0
        self._weight = 0.0
        self._mean_x = self._mean_y = 0.0
        self._xx = self._xy = self._yy = 0.0

    def add(self, x: float, y: float) -> None:
        """Count one more pair."""
        self._num_pairs += 1
        self._weight = self._decay * self._weight + 1
        from_x, from_y = x - self._mean_x, y - self._mean_y
        self._mean_x += from_x / self._weight
        self._mean_y += from_y / self._weight
        left_x, left_y = x - self._mean_x, y - self._mean_y
        self._xx = self._decay * self._xx + from_x * left_x
        self._yy = self._decay * self._yy + from_y * left_y
        self._xy = self._decay * self._xy + from_x * left_y

    @property
    def mean_x(self) -> float:
        """The mean of the pairs' first sides, with the same weights; 0 of none."""
        return self._mean_x

    @property
    def value(self) -> float:
        """The correlation in [-1, 1]; NaN for too few pairs, or where one side never changes."""
        scale = math.sqrt(self._xx) * math.sqrt(self._yy)
        if self._num_pairs < self._min_pairs or scale == 0:
            return math.nan
        return max(-1.0, min(1.0, self._xy / scale))


class BusyTime:
    """The time in which at least one of any number of things is going on."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._num_running = 0
        self._since = 0.0
        self._past_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be busy while the block runs."""
        with self._lock:
            if self._num_running == 0:
                self._since = self._now()
            self._num_running += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_running -= 1
                if self._num_running == 0:
                    self._past_s += self._now() - self._since

    def num_running(self) -> int:
        """Count what is going on."""
        with self._lock:
            return self._num_running

    def total_s(self) -> float:
        """Return the busy seconds so far, what is going on included."""
        with self._lock:
            return self._past_s + (self._now() - self._since if self._num_running else 0.0)
