import numpy as np
import pytest
from scipy import stats

from alarm_models.study.bootstrap import Resampling, estimate, ratio


def test_bootstrap_interval_equals_scipys() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    ours = estimate(np.stack([values, np.ones(80)], axis=1), ratio, Resampling(num_draws=20_000))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_bootstrap_draws_whole_prompts() -> None:
    # Four pairs a prompt that all say the same are one observation, not four.
    wins = np.random.default_rng(0).integers(2, size=100).astype(float)
    once = estimate(np.stack([wins, np.ones(100)], axis=1), ratio, Resampling())
    fourfold = estimate(np.stack([4 * wins, 4 * np.ones(100)], axis=1), ratio, Resampling())
    assert once == fourfold


def test_bootstrap_interval_depends_on_the_seed_alone() -> None:
    sums = np.random.default_rng(0).random((50, 2))
    assert estimate(sums, ratio, Resampling(seed=3)) == estimate(sums, ratio, Resampling(seed=3))
    assert estimate(sums, ratio, Resampling(seed=3)) != estimate(sums, ratio, Resampling(seed=4))


def test_bootstrap_interval_covers_the_truth_at_its_level() -> None:
    chance = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        values = chance.normal(size=60)
        found = estimate(np.stack([values, np.ones(60)], axis=1), ratio, Resampling(num_draws=400))
        held += found.low <= 0 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_bootstrap_without_data_is_nan() -> None:
    found = estimate(np.zeros((5, 2)), ratio, Resampling())
    assert np.isnan([found.value, found.low, found.high]).all()
    assert not found.lies_below(0.5)
    assert not found.lies_above(0.5)
