import math

import numpy as np
import pytest

from alarm_service.observability.metrics import BusyTime
from alarm_service.observability.reward_metrics import RunningCorrelation


def correlated(num_pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(1e6, 3, num_pairs)  # a mean that drowns naive sums of squares
    return x, 0.5 * (x - 1e6) + rng.normal(0, 2, num_pairs)


def told(x: np.ndarray, y: np.ndarray, half_life: float) -> float:
    running = RunningCorrelation(half_life, min_pairs=2)
    for pair in zip(x.tolist(), y.tolist(), strict=True):
        running.add(*pair)
    return running.value


@pytest.mark.parametrize("half_life", [1, 10, 100, 1e9])
def test_running_correlation_equals_numpy_with_halving_weights(half_life: float) -> None:
    x, y = correlated(500)
    weights = 0.5 ** (np.arange(499, -1, -1) / half_life)
    covariance = np.cov(x, y, aweights=weights, ddof=0)
    wanted = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    assert told(x, y, half_life) == pytest.approx(wanted, abs=1e-7)


def test_running_correlation_without_decay_equals_numpy() -> None:
    x, y = correlated(2000)
    assert told(x, y, 1e12) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-7)


def test_running_correlation_decays_old_values() -> None:
    x, y = correlated(1000)
    assert told(np.append(x, x), np.append(y, -y), half_life=50) == pytest.approx(
        -told(x, y, half_life=50), abs=1e-3
    )


@pytest.mark.parametrize(
    "pairs",
    [[], [(1, 1)], [(1, 1), (1, 2), (1, 3)], [(1, 2), (2, 2), (3, 2)]],
)
def test_running_correlation_of_few_or_constant_values_is_nan(
    pairs: list[tuple[float, float]],
) -> None:
    running = RunningCorrelation(100, min_pairs=3)
    for x, y in pairs:
        running.add(x, y)
    assert math.isnan(running.value)


def test_running_correlation_memory_is_bounded() -> None:
    running = RunningCorrelation(100, min_pairs=3)
    fields = set(vars(running))
    for index in range(10_000):
        running.add(index, -index)
    assert set(vars(running)) == fields
    assert all(isinstance(value, int | float) for value in vars(running).values())
    assert running.value == pytest.approx(-1)


def test_busy_time_counts_overlapping_blocks_once() -> None:
    clock = 0.0
    busy = BusyTime(lambda: clock)
    with busy.running():
        clock = 2
        with busy.running():
            clock = 3
            assert (busy.num_running(), busy.total_s()) == (2, 3)
        clock = 5
        assert (busy.num_running(), busy.total_s()) == (1, 5)
    clock = 9
    assert (busy.num_running(), busy.total_s()) == (0, 5)
