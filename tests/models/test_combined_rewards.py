from collections.abc import Mapping
from dataclasses import replace

import pytest

from alarm_models.combination.all_rules import Rule, RuleParams, Shaping
from alarm_models.combination.rewards import (
    AspectRule,
    ScoredSample,
    aspect_reward,
    combine_rewards,
    decide,
)
from alarm_models.combination.token_alignment import Placement
from alarm_models.errors import SampleError
from alarm_models.types import AspectReward, Reward, Sample, Score, SegmentScore, Span

TOKENS = (Span(0, 3), Span(3, 4), Span(5, 7), Span(7, 8), Span(8, 8))
SAMPLE = Sample("p", "Yes. No.", token_offsets=TOKENS)
FACTUALITY = AspectRule(0.5, -0.5, 0, 1, 1, 0, Shaping.NONE)
HIERARCHY = RuleParams(Rule.HIERARCHICAL, 0.6, 5, 1.0, 2.0, {"factuality": 2.0})


def judged(*positive: bool) -> Score:
    spans = (Span(0, 4), Span(5, 8))
    segments = tuple(
        SegmentScore(span, "O" if one else "F-ERR", 1.0 if one else -1.0, one)
        for span, one in zip(spans, positive, strict=True)
    )
    return Score(0.5, segments, 9, False)


def whole(value: float) -> Score:
    return Score(value, None, 9, False)


def combined(sample: Sample, holistic: Score, aspects: Mapping[str, AspectReward | None]) -> Reward:
    scored = ScoredSample(sample, decide(holistic, HIERARCHY), aspects)
    (reward,) = combine_rewards([scored], HIERARCHY)
    assert isinstance(reward, Reward)
    return reward


def test_segment_reward_lands_on_its_last_token() -> None:
    aspect = aspect_reward(judged(True, False), FACTUALITY, SAMPLE)
    assert aspect.token_rewards == (0, 0.5, 0, -0.5, 0)
    assert aspect.reward == 0


def test_sigmoid_shaping_leaves_tokens_without_a_segment_at_zero() -> None:
    shaped = AspectRule(0.5, -0.5, 0, 1, 1, 0, Shaping.SIGMOID)
    aspect = aspect_reward(judged(True, False), shaped, SAMPLE)
    assert aspect.token_rewards == pytest.approx((0, 0.6224593, 0, 0.3775407, 0))


def test_whole_score_is_normalised_scaled_and_paid_on_the_last_token() -> None:
    completeness = AspectRule(1, -1, mean=1.0, std=2.0, scale=0.3, bias=0.1, shaping=Shaping.NONE)
    aspect = aspect_reward(whole(5.0), completeness, SAMPLE)
    assert aspect.token_rewards == pytest.approx((0, 0, 0, 0, 0.7))


def test_graded_segment_gets_its_mapped_grade() -> None:
    graded = Score(0.2, (SegmentScore(Span(0, 4), "+", 0.9, None),), 9, False)
    steps = AspectRule(1, -1, mean=0.5, std=2.0, scale=1, bias=0.1, shaping=Shaping.NONE)
    assert aspect_reward(graded, steps, SAMPLE).token_rewards == pytest.approx((0, 0.3, 0, 0, 0))


def test_value_and_level_are_means_after_and_before_shaping() -> None:
    shaped = AspectRule(0.5, -0.5, 0, 1, 1, 0, Shaping.SIGMOID)
    aspect = aspect_reward(judged(True, True), shaped, SAMPLE)
    assert aspect.reward == pytest.approx(2 * 0.6224593)
    assert (aspect.value, aspect.level) == (pytest.approx(0.6224593), 0.5)
    nothing = aspect_reward(Score(None, (), 0, False), shaped, SAMPLE)
    assert (nothing.value, nothing.level) == (None, None)


S = 0.6224593  # sigmoid(0.5), and sigmoid(-0.5) is 1 - S


@pytest.mark.parametrize(
    ("shaping", "tokens", "value"),
    [
        (Shaping.CENTRED, (0, S - 0.5, 0, 0.5 - S, 0), 0),
        (Shaping.MEAN, (0, S / 2, 0, (1 - S) / 2, 0), 0.5),
        (Shaping.PER_LENGTH, (0, S / 5, 0, (1 - S) / 5, 0), 0.5),  # five tokens
    ],
)
def test_shaping_that_is_no_length_bonus_pays_each_segment_its_share(
    shaping: Shaping, tokens: tuple[float, ...], value: float
) -> None:
    rule = replace(FACTUALITY, shaping=shaping)
    aspect = aspect_reward(judged(True, False), rule, SAMPLE)
    assert aspect.token_rewards == pytest.approx(tokens)
    assert aspect.reward == pytest.approx(sum(tokens))
    assert (aspect.value, aspect.level) == (pytest.approx(value), 0)
    # Without tokens the reward is the same, per word instead of per token.
    scalar = aspect_reward(judged(True, False), rule, replace(SAMPLE, token_offsets=None))
    ratio = 5 / 2 if shaping is Shaping.PER_LENGTH else 1
    assert scalar.reward == pytest.approx(ratio * aspect.reward)
    nothing = aspect_reward(Score(None, (), 0, False), rule, SAMPLE)
    assert (nothing.reward, nothing.value) == (0, None)


def test_shaping_mean_of_tokens_is_the_share_of_tokens() -> None:
    rule = replace(FACTUALITY, shaping=Shaping.MEAN, placement=Placement.TOKENS)
    aspect = aspect_reward(judged(True, False), rule, SAMPLE)
    # Tokens 2 and 3 are in the wrong segment; the last is empty.
    assert aspect.token_rewards == pytest.approx((S / 5, S / 5, (1 - S) / 5, (1 - S) / 5, S / 5))


def test_length_of_a_rule_that_compares_lengths_is_in_tokens_or_else_in_words() -> None:
    gr3 = replace(HIERARCHY, rule=Rule.GR3, length_penalty=1.0)
    for sample, wanted in [
        (SAMPLE, (5, False)),
        (replace(SAMPLE, token_offsets=None), (2, True)),
        (replace(SAMPLE, token_offsets=()), (0, False)),
    ]:
        scored = ScoredSample(sample, decide(whole(1.0), gr3), {})
        given = scored.rule_inputs(gr3)
        assert (given.length, given.length_is_in_words) == wanted
    assert scored.rule_inputs(HIERARCHY).length == 0


def test_tokens_of_an_unread_segment_get_no_reward() -> None:
    rule = replace(FACTUALITY, shaping=Shaping.MEAN, placement=Placement.TOKENS)
    read, _ = judged(True, False).segments or ()
    score = Score(0.5, (read, SegmentScore(Span(5, 8), None, None, None)), 9, truncated=True)
    aspect = aspect_reward(score, rule, SAMPLE)
    assert aspect.token_rewards == pytest.approx((S / 3, S / 3, 0, 0, S / 3))
    # A token that a judged segment overlaps too has that one's reward.
    across = replace(SAMPLE, token_offsets=(Span(0, 3), Span(3, 8)))
    assert aspect_reward(score, rule, across).token_rewards == pytest.approx((S / 2, S / 2))
    without_tokens = aspect_reward(score, rule, replace(SAMPLE, token_offsets=None))
    assert without_tokens.reward == pytest.approx(aspect.reward) == pytest.approx(S)


def test_unread_segment_gets_no_reward() -> None:
    unread = SegmentScore(Span(5, 8), None, None, None)
    score = Score(1.0, (SegmentScore(Span(0, 4), "O", 1.0, True), unread), 9, True)
    assert aspect_reward(score, FACTUALITY, SAMPLE).token_rewards == (0, 0.5, 0, 0, 0)


def test_reward_past_the_threshold_has_the_weighted_aspects() -> None:
    aspects = {"factuality": aspect_reward(judged(True, True), FACTUALITY, SAMPLE)}
    reward = combined(SAMPLE, whole(3.0), aspects)
    assert reward.admitted
    assert reward.token_rewards == (0, 1, 0, 1, 5)
    assert reward.reward == 7


def test_reward_below_the_threshold_ignores_computed_aspects() -> None:
    aspects = {"factuality": aspect_reward(judged(True, True), FACTUALITY, SAMPLE)}
    reward = combined(SAMPLE, whole(2.0), aspects)
    assert not reward.admitted
    assert reward.token_rewards == (0, 0, 0, 0, 2.5)


def test_reward_without_token_offsets_is_one_number() -> None:
    bare = Sample("p", "Yes. No.")
    aspects = {"factuality": aspect_reward(judged(True, False), FACTUALITY, bare)}
    reward = combined(bare, whole(3.0), aspects)
    assert reward.token_rewards is None
    assert reward.reward == 5


def test_reward_without_tokens_is_zero_and_keeps_the_score() -> None:
    empty = Sample("p", "", token_offsets=())
    earned = AspectReward(0.5, (), None, 0.5, 0.5)
    reward = combined(empty, whole(3.0), {"factuality": earned})
    assert (reward.token_rewards, reward.reward) == ((), 0)
    assert (reward.holistic_score, reward.holistic_normalized) == (3, 1)
    aspect = reward.aspects["factuality"]
    assert aspect is not None
    assert (aspect.token_rewards, aspect.reward, aspect.value) == ((), 0, 0.5)


GRAMMAR = AspectRule(0, -1, 0, 1, 1, 0, Shaping.SIGMOID, Placement.TOKENS)


def test_per_token_placement_shapes_every_token() -> None:
    error = SegmentScore(Span(5, 7), "AnA", None, False)
    aspect = aspect_reward(Score(0.2, (error,), 0, False), GRAMMAR, SAMPLE)
    assert aspect.token_rewards == pytest.approx((0.5, 0.5, 0.2689414, 0.5, 0.5))
    assert aspect.reward == pytest.approx(4 * 0.5 + 0.2689414)


def test_per_token_placement_without_tokens_counts_words() -> None:
    error = SegmentScore(Span(5, 7), "AnA", None, False)
    bare = Sample("p", "Yes. No.")
    aspect = aspect_reward(Score(0.5, (error,), 0, False), GRAMMAR, bare)
    assert aspect.token_rewards is None
    assert aspect.reward == pytest.approx(0.5 + 0.2689414)


def test_shaped_values_of_an_aspect_are_what_its_reward_sums() -> None:
    shaped = AspectRule(0.5, -0.5, 0, 1, 1, 0, Shaping.SIGMOID)
    aspect = aspect_reward(judged(True, False), shaped, SAMPLE)
    assert aspect.shaped_values == pytest.approx((0.6224593, 0.3775407))
    assert aspect.reward == pytest.approx(1)


@pytest.mark.parametrize(
    ("rule", "below", "past"),
    [
        (Rule.HIERARCHICAL, False, True),
        (Rule.WEIGHTED_SUM, True, True),
        (Rule.HOLISTIC_ONLY, False, False),
    ],
)
def test_decide_says_whether_aspects_count_by_rule_and_threshold(
    rule: Rule, below: bool, past: bool
) -> None:
    params = replace(HIERARCHY, rule=rule)
    # Mean 1, deviation 2, threshold 0.6: a score of 2.2 is at it.
    low, high = decide(whole(2.1), params), decide(whole(2.2), params)
    assert (low.admitted, high.admitted) == (False, True)
    assert (low.aspects_count, high.aspects_count) == (below, past)
    assert high.z == pytest.approx(0.6)


@pytest.mark.parametrize(("value", "code"), [(None, "model_failed"), (1e308, "non_finite")])
def test_decide_without_a_finite_score_is_an_error(value: float | None, code: str) -> None:
    params = replace(HIERARCHY, mean=-1e308)
    with pytest.raises(SampleError) as caught:
        decide(Score(value, None, 9, False), params)
    assert caught.value.code == code
