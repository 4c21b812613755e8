"""The choice between two kernels must not depend on interruptions by other processes."""

import itertools
from collections.abc import Callable, Iterable

import pytest
from tolerance import computed

from alarm_models.modeling import kernel_timing
from alarm_models.modeling.kernel_timing import measured_gain


class Clock:
    """A clock that the measured calls move."""

    def __init__(self) -> None:
        self.now = 0.0

    def call(self, seconds: Iterable[float]) -> Callable[[], None]:
        durations = iter(seconds)

        def run() -> None:
            self.now += next(durations)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(kernel_timing.torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(kernel_timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_gain_is_the_ratio_of_times(clock: Clock) -> None:
    found = measured_gain(clock.call(itertools.repeat(0.003)), clock.call(itertools.repeat(0.002)))
    assert found == computed(1.5)


def test_interrupted_default_does_not_look_slow(clock: Clock) -> None:
    """It is interrupted in the first turns, and later half of the time."""
    default = itertools.chain([0.02] * 3, itertools.cycle([0.002, 0.02]))
    assert measured_gain(clock.call(default), clock.call(itertools.repeat(0.002))) == computed(1)


def test_one_lucky_turn_of_the_other_does_not_decide(clock: Clock) -> None:
    other = itertools.chain([0.001], itertools.repeat(0.002))
    assert measured_gain(clock.call(itertools.repeat(0.002)), clock.call(other)) == computed(1)


def test_gain_while_other_processes_use_the_cores_is_that_of_one_thread(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two threads, both calls mostly wait; with one, a call takes twice as long."""
    num_threads = [2]
    monkeypatch.setattr(kernel_timing.torch, "get_num_threads", lambda: num_threads[-1])
    monkeypatch.setattr(kernel_timing.torch, "set_num_threads", num_threads.append)

    def call(seconds: float) -> Callable[[], None]:
        def run() -> None:
            clock.now += 0.01 + seconds if num_threads[-1] == 2 else 2 * seconds

        return run

    assert measured_gain(call(0.004), call(0.002)) == computed(2)
    assert num_threads == [2, 1, 2]


def test_slow_calls_are_measured_nine_times(clock: Clock) -> None:
    assert measured_gain(clock.call([1.0] * 9), clock.call([4.0] * 9)) == computed(0.25)
