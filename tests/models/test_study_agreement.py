"""How far rewards agree: tables by hand, and scipy and plain loops on random data with ties."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from alarm_models.study.agreement import Agreement, agreement, tau_b
from alarm_models.study.bootstrap import Resampling
from alarm_models.study.pairs import pairs_between, pairs_within, preferences

FEW = Resampling(num_draws=200)


def agree(
    holistic: list[float], aspect: list[float], prompts: list[int], draws: Resampling = FEW
) -> Agreement:
    pairs = pairs_within(prompts)
    return agreement(preferences(holistic, pairs), preferences(aspect, pairs), pairs, draws)


def with_ties(seed: int, num_levels: int, size: int = 60) -> list[float]:
    return [float(one) for one in np.random.default_rng(seed).integers(num_levels, size=size)]


def test_agreement_counts_equal_those_by_hand() -> None:
    # Five prompts, two answers each. The holistic reward decides four of them: the aspect agrees
    # on one, disagrees on one, and is tied on two.
    holistic = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 5.0, 5.0]
    aspect = [1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 0.0]
    found = agree(holistic, aspect, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert (found.num_pairs, found.num_tied, found.num_against) == (4, 2, 1)
    assert found.inconsistency == 0.25  # the paper's: 1 of 4
    assert found.tie_share == 0.5
    assert found.by_chance == 0.25  # which is what knowing nothing gives with half of them tied
    assert found.untied.value == 0.5  # 1 of the 2 that both decide
    assert found.tau_b.value == 0.0  # (1 - 1) / sqrt(3 * 4)


def test_values_that_differ_by_rounding_tie() -> None:
    # Three tenths, added up in two ways.
    one, other = 0.1 + 0.1 + 0.1, 0.3
    assert one != other
    pairs = pairs_within([0, 0, 1, 1])
    assert preferences([one, other, 1.0, 1.0 + 1e-6], pairs).tolist() == [0, -1]
    assert np.isnan(tau_b([one, other], [1.0, 2.0]))


def test_tau_b_has_no_interval_if_the_aspect_decides_in_few_prompts() -> None:
    holistic = [1.0, 0.0] * 10
    found = agree(holistic, [1.0, *[0.0] * 19], [index // 2 for index in range(20)])
    assert found.tau_b.value == pytest.approx(0.1**0.5)  # 1 / sqrt(1 * 10)
    assert np.isnan(found.tau_b.low)
    assert np.isnan(found.untied.low)


@pytest.mark.parametrize(("num_levels", "ties"), [(1000, 0.0), (5, 0.2), (1, 1.0)])
def test_agreement_of_constant_aspect_is_high_by_ties_alone(num_levels: int, ties: float) -> None:
    prompts = np.repeat(np.arange(20_000), 2)
    chance = np.random.default_rng(1)
    holistic = chance.normal(size=40_000)
    aspect = chance.integers(num_levels, size=40_000)
    found = agree(list(holistic), list(aspect), list(prompts))
    assert found.tie_share == pytest.approx(ties, abs=0.01)
    assert found.inconsistency == pytest.approx(0.5 * (1 - ties), abs=0.01)
    if ties < 1:
        assert found.untied.value == pytest.approx(0.5, abs=0.01)
        assert found.tau_b.value == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [(2, 2), (3, 10), (1000, 2), (1000, 1000)])
def test_tau_b_equals_scipys(levels: tuple[int, int], seed: int) -> None:
    one, other = with_ties(seed, levels[0]), with_ties(seed + 100, levels[1])
    wanted = stats.kendalltau(one, other, variant="b").statistic
    assert tau_b(one, other) == pytest.approx(wanted, abs=1e-12)
    # All answers to one prompt: the tau-b within prompts is the same number.
    assert agree(one, other, [0] * 60).tau_b.value == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_agreement_counts_equal_a_plain_loops(seed: int) -> None:
    holistic, aspect = with_ties(seed, 4), with_ties(seed + 50, 3)
    prompts = [index // 4 for index in range(60)]
    decided = tied = against = both = 0
    for one, other in combinations(range(60), 2):
        if prompts[one] != prompts[other] or holistic[one] == holistic[other]:
            continue
        decided += 1
        tied += aspect[one] == aspect[other]
        both += aspect[one] != aspect[other]
        against += (holistic[one] > holistic[other]) == (aspect[one] < aspect[other]) and (
            aspect[one] != aspect[other]
        )
    found = agree(holistic, aspect, prompts)
    assert (found.num_pairs, found.num_tied, found.num_against) == (decided, tied, against)
    assert found.inconsistency == against / decided
    assert found.untied.value == pytest.approx(against / both)


def test_agreement_of_policies_uses_the_published_convention() -> None:
    # 100 * #{h_A != h_B, a_A != a_B, signs differ} / #{h_A != h_B}, as eval_compare.py counts.
    greedy = {"h": np.array(with_ties(1, 9)), "a": np.array(with_ties(2, 4))}
    sampled = {"h": np.array(with_ties(3, 9)), "a": np.array(with_ties(4, 4))}
    untied = greedy["h"] != sampled["h"]
    differs = (greedy["h"] > sampled["h"]) != (greedy["a"] > sampled["a"])
    wanted = (untied & differs & (greedy["a"] != sampled["a"])).sum() / untied.sum()
    pairs = pairs_between([*range(60), *range(60)], [0] * 60 + [1] * 60, 0, 1)
    holistic, aspect = (
        preferences(np.concatenate([greedy[name], sampled[name]]), pairs) for name in "ha"
    )
    assert agreement(holistic, aspect, pairs, FEW).inconsistency == wanted


def test_agreement_with_missing_value_leaves_its_pairs_out() -> None:
    nan = float("nan")
    whole = agree([2, 1, 0], [2, 1, 0], [0, 0, 0])
    holed = agree([2, 1, 0], [2, nan, 0], [0, 0, 0])
    assert (whole.num_pairs, holed.num_pairs) == (3, 1)
    assert holed.inconsistency == 0


def test_agreement_without_pairs_has_no_figures() -> None:
    found = agree([1.0], [1.0], [0])
    assert found.num_pairs == 0
    assert all(
        np.isnan(one)
        for one in (found.inconsistency, found.tie_share, found.untied.value, found.tau_b.low)
    )
