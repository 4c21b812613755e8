"""The threshold of the recipe benchmark admits the requested share of samples."""

import pytest
from recipe import threshold_for


@pytest.mark.parametrize(
    ("rate", "threshold", "admitted"),
    [(0, 4.5, 0), (0.25, 3.5, 0.25), (0.3, 3.5, 0.25), (0.5, 2.5, 0.5), (1, 0.5, 1)],
)
def test_threshold_for_rate_is_between_samples(
    rate: float, threshold: float, admitted: float
) -> None:
    assert threshold_for(rate, [2.0, 4.0, 1.0, 3.0]) == (threshold, admitted)
