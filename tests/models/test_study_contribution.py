from dataclasses import replace

import pytest

from alarm_models.combination.all_rules import Shaping
from alarm_models.combination.rewards import AspectRule
from alarm_models.study.addition import Addition, addition
from alarm_models.types import Score, SegmentScore, Span

FACTUALITY = AspectRule(0.5, -0.5, 0, 1, 1, 0, Shaping.SIGMOID)
PLAIN = AspectRule(0.5, -0.5, 0, 1, 1, 0, Shaping.NONE)


def judged(*segments: bool) -> Score:
    scores = tuple(SegmentScore(Span(0, 1), None, 1.0, one) for one in segments)
    return Score(sum(segments) / len(segments), scores, 1, False)


def added(scores: list[Score], rule: AspectRule = FACTUALITY, weight: float = 1.0) -> Addition:
    return addition(scores, ["ten words " * 5] * len(scores), rule, weight)


def test_contribution_of_a_wrong_sentence_is_0_378() -> None:
    found = added([judged(True, False)])
    assert found.wrong == pytest.approx(0.3775, abs=1e-4)
    assert found.right == pytest.approx(0.6225, abs=1e-4)
    assert found.mean == pytest.approx(1.0)
    assert found.unearned == pytest.approx(2 * 0.3775, abs=1e-4)


def test_contribution_that_rewards_length_is_a_length_bonus() -> None:
    # Longer answers are worse here, and earn more.
    found = added([judged(True), judged(True, False), judged(False, False, False)])
    assert found.with_length > 0.9
    assert found.with_score < -0.9
    assert found.is_length_bonus
    assert "a bonus for more segments" in found.explained()


def test_contribution_of_unshaped_penalties_is_not_a_length_bonus() -> None:
    found = added([judged(True, True, False), judged(True), judged(False, False, False)], PLAIN)
    assert found.wrong == -0.5
    assert found.unearned == 0
    assert not found.is_length_bonus
    assert "a wrong one -0.500" in found.explained()


def test_contribution_scales_with_the_weight() -> None:
    scores = [judged(True), judged(False)]
    assert added(scores, weight=3).mean == pytest.approx(3 * added(scores).mean)


def test_contribution_of_a_whole_score_is_compared_with_words() -> None:
    rule = AspectRule(1, -1, 2.0, 4.0, 1, 0, Shaping.NONE)
    found = addition(
        [Score(value, None, 1, False) for value in (2.0, 6.0)], ["one", "nine " * 9], rule, 1.0
    )
    assert found.mean == pytest.approx(0.5)
    assert found.right is None
    assert found.with_length == pytest.approx(1)
    assert found.is_length_bonus


def test_contribution_without_segments_is_zero() -> None:
    found = added([Score(None, (), 0, False), judged(True)])
    assert found.mean == pytest.approx(0.6225 / 2, abs=1e-4)


@pytest.mark.parametrize("shaping", [Shaping.CENTRED, Shaping.MEAN])
def test_contribution_of_a_shaping_for_right_segments_is_not_a_length_bonus(
    shaping: Shaping,
) -> None:
    scores = [judged(True), judged(True, False), judged(False, False, False)]
    found = added(scores, replace(FACTUALITY, shaping=shaping))
    assert found.with_score > 0.9
    assert found.with_length < 0
    assert not found.is_length_bonus
    assert "number" in found.explained()
