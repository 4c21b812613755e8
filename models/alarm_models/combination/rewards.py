"""Converts scores to aspect rewards, and combines them by the rule into each sample's reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from alarm_models.combination.all_rules import (
    SHAPINGS,
    AspectInput,
    RuleInputs,
    RuleParams,
    Shaping,
    apply_rule,
    is_admitted,
    normalize,
    validate_groups,
)
from alarm_models.combination.rule_registry import HOLISTIC
from alarm_models.combination.token_alignment import (
    Placement,
    end_token,
    per_token_values,
    place_differences,
    place_on_tokens,
    place_on_turns,
    places_on_tokens,
    places_on_turns,
    shown_tokens,
    whitespace_tokens,
)
from alarm_models.errors import SampleError
from alarm_models.types import AspectReward, AspectValues, Reward, Sample, Score, SegmentScore, Span

__all__ = [
    "AspectRule",
    "AspectValues",
    "HolisticDecision",
    "ScoredSample",
    "apply_rule",
    "aspect_reward",
    "combine_rewards",
    "decide",
    "normalized_score",
    "validate_groups",
    "value_places",
    "weighted_parts",
]


@dataclass(frozen=True, slots=True)
class AspectRule:
    """How an aspect's score becomes its reward.

    A segment judged positive or negative gets ``positive`` or ``negative``. A segment with a grade,
    or a whole completion, gets ``(score - mean) / std * scale + bias``. Each value is then shaped,
    and divided if the shaping divides by the number of segments or tokens, or if the segments share
    one value. With placement on tokens, a token gets ``negative`` if a negative segment overlaps
    it, otherwise ``positive``; tokens of segments that were not judged get nothing. With
    ``is_dense`` the reward of a whole completion is spread over the tokens: a segment gets the
    difference between the value of the completion up to its end and the value up to its start.
    """

    positive: float
    negative: float
    mean: float
    std: float
    scale: float
    bias: float
    shaping: Shaping
    placement: Placement = Placement.SEGMENT_ENDS
    is_dense: bool = False

    def shaped(self, score: float | None) -> float:
        """Return the shaped value of a whole completion's score; NaN if there is no score."""
        if score is None:
            return math.nan
        return SHAPINGS[self.shaping](self._raw_value(score, None))

    def values(self, score: Score, tokens: Sequence[Span]) -> AspectValues:
        """Return the values of a score; ``tokens`` are those of the completion, or its words."""
        spans, raw = self._raw_values(score, tokens)
        shape = SHAPINGS[self.shaping]
        divisor = self.shaping.divisor(len(raw), len(tokens))
        if score.is_divided and not self.shaping.divides:
            divisor = max(len(raw), 1)
        shaped = [shape(value) for value in raw]
        return AspectValues(spans, raw, shaped, divisor, len(tokens), score.is_divided)

    def _raw_values(
        self, score: Score, tokens: Sequence[Span]
    ) -> tuple[Sequence[Span | None], Sequence[float]]:
        if score.segments is None or score.prefixes:
            if score.value is None:
                return (), ()
            return (None,), (self._raw_value(score.value, None),)
        if self.placement is Placement.TOKENS:
            errors = [segment.span for segment in score.segments if segment.is_positive is False]
            return tokens, per_token_values(errors, tokens, self.positive, self.negative)
        judged = [
            (segment.span, self._raw_value(segment.score, segment.is_positive))
            for segment in score.segments
            if segment.score is not None or segment.is_positive is not None
        ]
        return [span for span, _ in judged], [value for _, value in judged]

    def _raw_value(self, score: float | None, is_positive: bool | None) -> float:
        if is_positive is None:
            if score is None:
                raise ValueError("a value needs a score or a verdict")
            return (score - self.mean) / self.std * self.scale + self.bias
        return self.positive if is_positive else self.negative


def aspect_reward(score: Score, rule: AspectRule, sample: Sample) -> AspectReward:
    """Turn an aspect's score into its reward, before the aspect's weight.

    Tokens that the model did not judge, such as those of tool results, get no reward.
    """
    text = sample.completion_text
    # Packed spans are unpacked on each access.
    tokens = None if sample.token_offsets is None else tuple(sample.token_offsets)
    units = tokens or whitespace_tokens(text)
    judged = _judged_tokens(units, score.judged, score.segments, rule.placement)
    values = rule.values(score, units if len(judged) == len(units) else [units[i] for i in judged])
    token_rewards: tuple[float, ...] | None = None
    if tokens and score.prefixes and rule.is_dense:
        token_rewards = _spread(
            score, lambda score: rule.shaped(score) / values.divisor, text, tokens
        )
    elif tokens is not None:
        placed = list(zip(values.spans, values.rewards, strict=True))
        if rule.placement is Placement.TOKENS and score.segments is not None:
            token_rewards = _scattered(values.rewards, judged, len(tokens))
        elif rule.placement is Placement.TURN_ENDS:
            end = end_token(tokens, score.judged)
            token_rewards = place_on_turns(placed, sample.turns, tokens, end)
        else:
            token_rewards = place_on_tokens(placed, text, tokens, end_token(tokens, score.judged))
    return AspectReward(
        sum(values.rewards),
        token_rewards,
        score.segments if rule.is_dense or not score.prefixes else None,
        _mean(values.shaped),
        _mean(values.raw),
        score.truncated,
        tuple(values.shaped),
        score.omitted,
        None if rule.is_dense and score.prefixes else values,
        score.judged,
    )


def value_places(
    values: AspectValues, aspect: AspectReward, rule: AspectRule, sample: Sample
) -> list[int] | None:
    """Return the token that each value of an aspect is placed on; None without policy tokens."""
    tokens = None if sample.token_offsets is None else tuple(sample.token_offsets)
    if not tokens:
        return None
    if rule.placement is Placement.TOKENS and aspect.segments is not None:
        return _judged_tokens(tokens, aspect.judged, aspect.segments, rule.placement)
    end = end_token(tokens, aspect.judged)
    if rule.placement is Placement.TURN_ENDS:
        return places_on_turns(values.spans, sample.turns, tokens, end)
    return places_on_tokens(values.spans, sample.completion_text, tokens, end)


def _judged_tokens(
    tokens: Sequence[Span],
    judged: Sequence[Span] | None,
    segments: Sequence[SegmentScore] | None,
    placement: Placement,
) -> list[int]:
    """Return the indices of tokens in the judged parts of a text.

    With placement on tokens, those that overlap only a segment without a verdict are left out: the
    model did not read it.
    """
    shown = shown_tokens(tokens, judged)
    unread = [one.span for one in segments or () if one.is_positive is None]
    if placement is not Placement.TOKENS or not unread:
        return shown
    judged_segments = [one.span for one in segments or () if one.is_positive is not None]
    own = [tokens[index] for index in shown]
    is_read = per_token_values(unread, own, right=1, wrong=0)
    is_judged = per_token_values(judged_segments, own, right=0, wrong=1)
    return [at for at, one, other in zip(shown, is_read, is_judged, strict=True) if one or other]


def _spread(
    score: Score, value_of: Callable[[float | None], float], text: str, tokens: Sequence[Span]
) -> tuple[float, ...]:
    """Place the difference that each prefix of a completion makes, from the empty one on."""
    values = [(segment.span, value_of(segment.score)) for segment in score.segments or ()]
    return place_differences(value_of(score.prefixes[0].value), values, text, tokens, score.judged)


def _scattered(values: Sequence[float], places: Sequence[int], length: int) -> tuple[float, ...]:
    """Return a list that has values at some places, and 0 at all others."""
    scattered = [0.0] * length
    for place, value in zip(places, values, strict=True) if length else ():
        scattered[place] = value
    return tuple(scattered)


@dataclass(frozen=True, slots=True)
class HolisticDecision:
    """A sample's holistic score and what follows from it; made once, by `decide`.

    ``z`` is the normalized score; ``admitted`` says whether it is past the threshold, and
    ``aspects_count`` whether the rule uses the sample's aspects.
    """

    score: Score
    z: float
    admitted: bool
    aspects_count: bool


def decide(score: Score, params: RuleParams) -> HolisticDecision:
    """Compare a holistic score with the threshold; raise `SampleError` as `normalized_score`."""
    z = normalized_score(score, params)
    admitted = is_admitted(z, params)
    return HolisticDecision(
        score, z, admitted, params.definition.aspects.includes(admitted=admitted)
    )


def normalized_score(score: Score, params: RuleParams) -> float:
    """Return ``z`` of a holistic score; raise `SampleError` unless it is a finite number."""
    if score.value is None:
        raise SampleError("model_failed", "the holistic model found nothing to score")
    z = normalize(score.value, params)
    if not math.isfinite(z):
        raise SampleError(
            "non_finite",
            "holistic.mean or holistic.std is so extreme that the normalized score overflows",
        )
    return z


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """One sample with everything needed to compute its reward.

    ``aspects`` has every aspect of the recipe, with None if it was not computed; those that the
    rule needs must be computed. ``reference_z`` is the normalized holistic score of a reference
    completion.
    """

    sample: Sample
    holistic: HolisticDecision
    aspects: Mapping[str, AspectReward | None]
    reference_z: float | None = None

    def rule_inputs(self, params: RuleParams) -> RuleInputs:
        """Return the rule's inputs, with only the aspects that count."""
        counted = {
            name: self._aspect_input(aspect)
            for name, aspect in self.aspects.items()
            if self.holistic.aspects_count and aspect is not None and params.needs_aspect(name)
        }
        offsets = self.sample.token_offsets
        inputs = RuleInputs(
            self.holistic.z,
            counted,
            len(offsets or ()) or 1,
            self.reference_z,
            self.sample.group,
            self._spread_z(params),
        )
        if not params.definition.uses_length:
            return inputs
        units = whitespace_tokens(self.sample.completion_text) if offsets is None else offsets
        return replace(inputs, length=len(units), length_is_in_words=offsets is None)

    def _spread_z(self, params: RuleParams) -> tuple[float, ...] | None:
        score, tokens = self.holistic.score, self.sample.token_offsets
        if not tokens or self._prefix_segments(params) is None:
            return None

        def value_of(score: float | None) -> float:
            return math.nan if score is None else normalize(score, params)

        spread = _spread(score, value_of, self.sample.completion_text, tuple(tokens))
        return tuple(_end_last(spread, self._end))

    def _prefix_segments(self, params: RuleParams) -> tuple[SegmentScore, ...] | None:
        score = self.holistic.score
        return score.segments if params.spreads_holistic and score.prefixes else None

    @property
    def _end(self) -> int:
        """The token on which the holistic reward is placed."""
        return end_token(self.sample.token_offsets or (_NO_TOKEN,), self.holistic.score.judged)

    def reward(self, tokens: Sequence[float], params: RuleParams) -> Reward:
        """Return the reward for the rule's result, on the policy's tokens if the sample has any.

        If ``token_offsets`` is empty, there are no token rewards, and their sum is 0.
        """
        offsets = self.sample.token_offsets
        tokens = _end_back(tokens, self._end)
        computed = [aspect for aspect in self.aspects.values() if aspect is not None]
        if not all(map(math.isfinite, tokens)):
            raise SampleError(
                "non_finite",
                "the recipe's weights or constants are so large that the reward overflows",
            )
        paid = tokens if offsets is None else tokens[: len(offsets)]
        aspects = self.aspects if offsets is None or offsets else _without_reward(self.aspects)
        score = self.holistic.score
        return Reward(
            reward=float(sum(paid)),
            token_rewards=None if offsets is None else tuple(paid),
            holistic_score=score.value or 0.0,
            holistic_normalized=self.holistic.z,
            admitted=self.holistic.admitted,
            aspects=aspects,
            truncated=score.truncated or any(one.truncated for one in computed),
            holistic_segments=self._prefix_segments(params),
            omitted=tuple(
                sorted({*score.omitted, *(name for one in computed for name in one.omitted)})
            ),
        )

    def _aspect_input(self, aspect: AspectReward) -> AspectInput:
        rewards = aspect.token_rewards if self.sample.token_offsets else (aspect.reward,)
        return AspectInput(_end_last(rewards or (), self._end), aspect.value, aspect.level)


#: The token of a sample that has no token offsets.
_NO_TOKEN = Span(0, 0)


def _end_last(values: Sequence[float], end: int) -> Sequence[float]:
    """Move the value at ``end`` to the last place, where rules put the holistic reward."""
    if end >= len(values) - 1:
        return values
    return (*values[:end], *values[end + 1 :], values[end])


def _end_back(values: Sequence[float], end: int) -> Sequence[float]:
    """Undo `_end_last`."""
    if end >= len(values) - 1:
        return values
    return (*values[:end], values[-1], *values[end:-1])


def combine_rewards(
    samples: Sequence[ScoredSample], params: RuleParams
) -> list[Reward | SampleError]:
    """Combine the scores of each sample by the recipe's rule, in order."""
    combined = apply_rule([scored.rule_inputs(params) for scored in samples], params)
    return [
        _reward(scored, tokens, params) for scored, tokens in zip(samples, combined, strict=True)
    ]


def _reward(
    scored: ScoredSample, tokens: tuple[float, ...] | SampleError, params: RuleParams
) -> Reward | SampleError:
    if isinstance(tokens, SampleError):
        return tokens
    try:
        return scored.reward(tokens, params)
    except SampleError as error:
        return error


def weighted_parts(reward: Reward, params: RuleParams) -> dict[str, float] | None:
    """Return what the holistic score and each aspect that counts add to a reward, by name.

    None if the rule is no sum of weighted parts.
    """
    rule = params.definition
    if not rule.adds_up:
        return None
    weight = params.holistic_weight if rule.uses_holistic else 0.0
    parts = {HOLISTIC: weight * reward.holistic_normalized}
    if rule.aspects.includes(admitted=reward.admitted):
        for name, aspect in reward.aspects.items():
            if aspect is not None:
                parts[name] = parts.get(name, 0.0) + params.weights[name] * aspect.reward
    return parts


def _without_reward(
    aspects: Mapping[str, AspectReward | None],
) -> dict[str, AspectReward | None]:
    return {
        name: None if aspect is None else replace(aspect, reward=0.0)
        for name, aspect in aspects.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
