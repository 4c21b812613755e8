from collections.abc import Mapping

import pytest

from alarm_models.combination.all_rules import (
    Rule,
    RuleParams,
    hierarchical_sum,
    is_admitted,
    normalize,
    sigmoid,
)

#: The paper's Figure 1: threshold 5, W 1, mean 0, std 1, six tokens, two aspects of weight 1.
FIGURE = RuleParams(Rule.HIERARCHICAL, 5.0, 1.0, 0.0, 1.0, {"plain": 1.0, "shaped": 1.0})
ASPECTS: Mapping[str, list[float]] = {
    "plain": [1, 0, 0, 2, 0, 0],
    "shaped": [sigmoid(value) for value in (1, 1, 0, 0, -1, -2)],
}


def rule(name: Rule) -> RuleParams:
    return RuleParams(name, 5.0, 1.0, 0.0, 1.0, {"plain": 1.0, "shaped": 1.0})


def test_hierarchical_below_the_threshold_pays_the_holistic_reward_alone() -> None:
    assert hierarchical_sum(3, ASPECTS, FIGURE, 6) == (0, 0, 0, 0, 0, 3)


def test_hierarchical_past_the_threshold_equals_figure_1() -> None:
    rewards = hierarchical_sum(7, ASPECTS, FIGURE, 6)
    assert [round(reward, 1) for reward in rewards] == [1.7, 0.7, 0.5, 2.5, 0.3, 7.1]


def test_hierarchical_at_the_threshold_is_admitted() -> None:
    assert is_admitted(5, FIGURE)
    assert hierarchical_sum(5, {"plain": [1, 0]}, FIGURE, 2) == (1, 5)


def test_weighted_sum_below_the_threshold_adds_aspects() -> None:
    assert hierarchical_sum(3, {"plain": [1, 2]}, rule(Rule.WEIGHTED_SUM), 2) == (1, 5)


def test_holistic_only_past_the_threshold_adds_no_aspects() -> None:
    assert hierarchical_sum(7, {"plain": [1, 2]}, rule(Rule.HOLISTIC_ONLY), 2) == (0, 7)


def test_aspect_only_leaves_out_the_holistic_reward() -> None:
    assert hierarchical_sum(7, {"plain": [1, 2]}, rule(Rule.ASPECT_ONLY), 2) == (1, 2)


def test_aspect_only_multiplies_each_aspect_by_its_weight() -> None:
    weighted = RuleParams(Rule.ASPECT_ONLY, 0, 1, 0, 1, {"a": 0.5, "b": 2.0})
    assert hierarchical_sum(0, {"a": [1, 0], "b": [0, 3]}, weighted, 2) == (0.5, 6)


def test_holistic_weight_multiplies_the_score_and_not_the_threshold() -> None:
    paper = RuleParams(Rule.HIERARCHICAL, 0.6, 5, -4.896130742253484, 3.0595760500526468, {})
    z = normalize(-4.896130742253484 + 0.5 * 3.0595760500526468, paper)
    assert z == pytest.approx(0.5)
    assert not is_admitted(z, paper)
    assert hierarchical_sum(z, {}, paper, 3) == pytest.approx((0, 0, 2.5))


def test_hierarchical_sum_without_tokens_is_empty() -> None:
    assert hierarchical_sum(7, {"plain": []}, FIGURE, 0) == ()


@pytest.mark.parametrize(
    ("value", "shaped"), [(0.0, 0.5), (0.5, 0.6224593), (-0.5, 0.3775407), (-1000.0, 0.0)]
)
def test_sigmoid_is_between_zero_and_one(value: float, shaped: float) -> None:
    assert sigmoid(value) == pytest.approx(shaped)
