import numpy as np
import pytest

from alarm_models.study.calibration import admission_for, admitted_share, moments

NAN = float("nan")


def test_moments_equal_numpys() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=100)
    found = moments([*values, NAN])
    assert (found.mean, found.std, found.count) == (values.mean(), values.std(), 100)


@pytest.mark.parametrize(("wanted", "threshold"), [(0.25, 3.5), (0.3, 3.5), (0.5, 2.5), (0.7, 1.5)])
def test_threshold_is_between_two_scores(wanted: float, threshold: float) -> None:
    found = admission_for([4.0, 1.0, 3.0, 2.0], wanted)
    assert found.threshold == threshold


def test_threshold_with_tied_scores_admits_them_together() -> None:
    found = admission_for([0.0, 1.0, 1.0, 1.0], 0.3)
    assert (found.threshold, found.share) == (0.5, 0.75)


def test_threshold_on_normal_scores_admits_its_share() -> None:
    z = np.random.default_rng(0).normal(size=100_000)
    assert admitted_share(z, 0.6) == pytest.approx(0.274, abs=0.005)  # P(z >= .6)
    assert admission_for(z, 0.274).threshold == pytest.approx(0.6, abs=0.02)


def test_threshold_admits_an_equal_score() -> None:
    assert admitted_share([0.5, 0.6, 0.7, NAN], 0.6) == pytest.approx(2 / 3)


def test_calibration_of_constant_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        moments([1.0, NAN])
    with pytest.raises(ValueError, match="all holistic scores are equal"):
        admission_for([1.0, 1.0], 0.5)
