"""The gate opens for the share of samples that a benchmark of the recipe asks for."""

import pytest
from recipe import threshold_for


@pytest.mark.parametrize(
    ("rate", "threshold", "admitted"),
    [(0, 4.5, 0), (0.25, 3.5, 0.25), (0.3, 3.5, 0.25), (0.5, 2.5, 0.5), (1, 0.5, 1)],
)
def test_the_threshold_lies_between_samples(rate: float, threshold: float, admitted: float) -> None:
    assert threshold_for(rate, [2.0, 4.0, 1.0, 3.0]) == (threshold, admitted)
