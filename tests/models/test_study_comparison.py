import numpy as np
import pytest

from alarm_models.study.bootstrap import Resampling
from alarm_models.study.comparison import Comparison, WinRate, compare

FEW = Resampling(num_draws=300)


def compared(
    values: list[float], prompts: list[int], policies: list[int], *, lower: bool = False
) -> Comparison:
    return compare(values, prompts, policies, is_lower_better=lower, resampling=FEW)


def counts(one: WinRate | None) -> tuple[float, float, float]:
    assert one is not None
    return one.wins, one.losses, one.ties


#: Two policies answer four prompts: the second wins two, loses one, and one is tied.
TWO = ([1.0, 1.0, 3.0, 2.0, 2.0, 4.0, 1.0, 2.0], [0, 1, 2, 3] * 2, [0] * 4 + [1] * 4)


def test_wins_equal_those_by_hand() -> None:
    found = compared(*TWO)
    (nobody, first), (second, _) = found.rates
    assert nobody is None
    assert counts(first) == (1, 2, 1)
    assert counts(second) == (2, 1, 1)
    assert second is not None
    assert second.rate.value == pytest.approx(2 / 3)  # ties left out


def test_wins_with_lower_is_better_keep_the_means_sign() -> None:
    found = compared(*TWO, lower=True)
    assert counts(found.rates[0][1]) == (2, 1, 1)
    assert [one.mean.value for one in found.spreads] == [1.75, 2.25]


def test_gain_over_the_first_policy_is_paired_by_prompt() -> None:
    first, second = compared(*TWO).spreads
    assert first.gain.value == 0
    assert second.gain.value == 0.5
    # A constant step ahead has no spread, however far apart prompts are.
    chance = np.random.default_rng(0).normal(scale=100, size=50)
    ahead = compared([*chance, *(chance + 1)], [*range(50)] * 2, [0] * 50 + [1] * 50).spreads[1]
    assert (ahead.gain.low, ahead.gain.high) == pytest.approx((1, 1))
    assert ahead.mean.high - ahead.mean.low > 10


def test_comparison_counts_each_prompt_once() -> None:
    # The first policy answers prompt 0 three times and wins twice; it loses prompt 1.
    found = compared([5, 5, 0, 0, 1, 1], [0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1])
    assert counts(found.rates[0][1]) == pytest.approx((2 / 3, 4 / 3, 0))
    assert found.spreads[0].mean.value == pytest.approx((10 / 3 + 0) / 2)


def test_comparison_average_is_the_mean_of_a_row() -> None:
    chance = np.random.default_rng(3)
    values = [float(one) for one in chance.integers(5, size=90)]
    found = compared(values, [*range(30)] * 3, [0] * 30 + [1] * 30 + [2] * 30)
    for row, average in zip(found.rates, found.averages, strict=True):
        rates = [one.rate.value for one in row if one is not None]
        assert average.value == pytest.approx(np.mean(rates))
        assert average.low < average.value < average.high


def test_win_rates_equal_a_plain_loops() -> None:
    chance = np.random.default_rng(5)
    one, other = chance.integers(4, size=(2, 200))
    found = compared(
        [*map(float, one), *map(float, other)], [*range(200)] * 2, [0] * 200 + [1] * 200
    )
    wanted = sum(a > b for a, b in zip(one, other, strict=True))
    ties = sum(a == b for a, b in zip(one, other, strict=True))
    assert counts(found.rates[0][1]) == (wanted, 200 - wanted - ties, ties)
    back = found.rates[1][0]
    assert back is not None
    forth = found.rates[0][1]
    assert forth is not None
    assert back.rate.value == pytest.approx(1 - forth.rate.value)


def test_comparison_leaves_missing_values_out() -> None:
    nan = float("nan")
    found = compared([1, nan, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1])
    assert counts(found.rates[0][1]) == (1, 0, 0)
    assert found.spreads[0].num_completions == 1
    assert found.spreads[0].mean.value == 1
