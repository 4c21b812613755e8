"""Results as the plain numbers that trainers take, and the paper's rule for short responses."""

import pickle
from typing import get_args

import pytest

from alarm_client.errors import SampleFailed
from alarm_client.short_responses import punish_too_short
from alarm_client.types import (
    Holistic,
    Reward,
    RewardResult,
    Rule,
    Sample,
    SampleError,
    Score,
    ScoreResult,
    Shaping,
    Usage,
)
from alarm_models.combination import all_rules

GOOD = Reward(None, 1.5, (0.5, 0.0, 1.0), Holistic(3.0, 1.0), True, {"facts": None}, False, None)
BAD = Reward(None, None, None, None, False, {}, False, SampleError("too_long", "9 tokens, 8 fit"))
RESULT = RewardResult("qa", "f", (GOOD, BAD), Usage(5, 5))


@pytest.mark.parametrize("stand_in", [None, 0.0, -7.0])
def test_scalars_with_on_error_uses_the_number(stand_in):
    assert RESULT.scalars(on_error=stand_in) == [1.5, stand_in]


def test_scalars_with_failed_sample_raises_by_default():
    with pytest.raises(SampleFailed, match="sample 1 has no number: too_long: 9 tokens") as caught:
        RESULT.scalars()
    assert caught.value.code == "too_long"


def test_scalars_without_segments_is_a_failed_sample():
    result = ScoreResult("rm", "f", (Score(None, None, None, 3, False, None),), Usage(3, 3))
    assert result.scalars(on_error=None) == [None]
    with pytest.raises(SampleFailed, match="no segment"):
        result.scalars()


def test_punish_too_short_keeps_only_penalty_on_last_token():
    result = punish_too_short(RESULT, [2, 3], holistic_weight=5.0)
    short, other = result.rewards
    assert (short.reward, short.token_rewards) == (-50.0, (0.0, 0.0, -50.0))
    assert (short.holistic, short.admitted, short.aspects) == (Holistic(None, -10.0), False, {})
    assert other is BAD


def test_punish_too_short_applies_to_failed_samples():
    result = punish_too_short(RESULT, [9, 0], holistic_weight=1.0)
    assert result.rewards[0] is GOOD
    assert (result.rewards[1].reward, result.rewards[1].error) == (-10.0, None)


def test_punish_too_short_requires_one_length_per_sample():
    with pytest.raises(ValueError, match="zip"):
        punish_too_short(RESULT, [9], holistic_weight=1.0)


def test_samples_and_results_are_picklable():
    sample = Sample(prompt="p", completion="c", token_offsets=[(0, 1)])
    assert pickle.loads(pickle.dumps((sample, RESULT))) == (sample, RESULT)


def test_rule_type_takes_every_rule_of_a_newer_server():
    assert Rule is str


def test_shaping_type_has_the_shapings_of_the_server():
    assert set(get_args(Shaping)) == {one.value for one in all_rules.Shaping}


@pytest.mark.parametrize("on_error", ["none", "", "Raise"])
def test_scalars_with_unknown_on_error_is_refused(on_error):
    with pytest.raises(ValueError, match="on_error must be 'raise', None or a number"):
        RESULT.scalars(on_error=on_error)
