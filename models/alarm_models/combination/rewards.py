"""From scores to aspect rewards and, by the rule, to each sample's reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from alarm_models.combination.group_rules import Tokens, gdpo, mo_grpo, validate_group_members
from alarm_models.combination.rules import (
    SHAPINGS,
    AspectInput,
    Rule,
    RuleInputs,
    RuleParams,
    Shaping,
    aspects_apply,
    cascade,
    is_admitted,
    log_sigmoid,
    minimum,
    needs_aspect,
    normalize,
    par,
    product,
    soft_gate,
    sum_of_counted,
    veto,
)
from alarm_models.combination.token_alignment import (
    Placement,
    per_token_values,
    place_on_tokens,
    whitespace_tokens,
)
from alarm_models.errors import SampleError
from alarm_models.types import AspectReward, Reward, Sample, Score, Span

__all__ = [
    "AspectRule",
    "ScoredSample",
    "apply_rule",
    "aspect_reward",
    "combine_rewards",
    "validate_groups",
]


@dataclass(frozen=True, slots=True)
class AspectRule:
    """How an aspect's score becomes its reward.

    A judged segment earns ``positive`` or ``negative``; the grade of a segment, as the score of a
    whole completion, earns ``(score - mean) / std * scale + bias``. Each is shaped. Placed on
    tokens, each token earns ``negative`` where a negative segment overlaps it, and ``positive``
    elsewhere.
    """

    positive: float
    negative: float
    mean: float
    std: float
    scale: float
    bias: float
    shaping: Shaping
    placement: Placement = Placement.SEGMENT_ENDS

    def raw_values(self, score: Score, tokens: Sequence[Span]) -> list[tuple[Span | None, float]]:
        """Return the values before shaping, with their spans; None is the whole completion.

        ``tokens`` are the completion's, or its words.
        """
        if score.segments is None:
            return [] if score.value is None else [(None, self._raw_value(score.value, None))]
        if self.placement is Placement.TOKENS:
            errors = [segment.span for segment in score.segments if segment.is_positive is False]
            levels = per_token_values(errors, tokens, self.positive, self.negative)
            return list(zip(tokens, levels, strict=False))
        return [
            (segment.span, self._raw_value(segment.score, segment.is_positive))
            for segment in score.segments
            if segment.score is not None
        ]

    def shaped(
        self, levels: Sequence[tuple[Span | None, float]]
    ) -> list[tuple[Span | None, float]]:
        """Return what the levels are worth."""
        shape = SHAPINGS[self.shaping]
        return [(span, shape(level)) for span, level in levels]

    def shaped_values(
        self, score: Score, tokens: Sequence[Span]
    ) -> list[tuple[Span | None, float]]:
        """Return the levels, shaped."""
        return self.shaped(self.raw_values(score, tokens))

    def _raw_value(self, score: float, is_positive: bool | None) -> float:
        if is_positive is None:
            return (score - self.mean) / self.std * self.scale + self.bias
        return self.positive if is_positive else self.negative


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """One sample with the scores that its reward is made of.

    ``aspects`` holds every aspect of the recipe, None where it was not computed; those that the
    rule needs must be there. ``reference`` is the holistic score of a reference completion.
    """

    sample: Sample
    holistic: Score
    aspects: Mapping[str, AspectReward | None]
    reference: Score | None = None

    def rule_inputs(self, hierarchy: RuleParams) -> RuleInputs:
        """Return what the rule combines; raise `SampleError` where the holistic score lacks."""
        z = _normalized(self.holistic, hierarchy)
        counted = {
            name: self._aspect_input(aspect)
            for name, aspect in self.aspects.items()
            if aspect is not None and needs_aspect(name, hierarchy) and aspects_apply(z, hierarchy)
        }
        reference_z = None if self.reference is None else _normalized(self.reference, hierarchy)
        num_tokens = len(self.sample.token_offsets or ()) or 1
        return RuleInputs(z, counted, num_tokens, reference_z, self.sample.group)

    def reward(self, tokens: Sequence[float], hierarchy: RuleParams) -> Reward:
        """Return the reward that the rule gave, on the policy's tokens where there are any.

        A policy that made no token earned nothing: the reward is the sum of no tokens' rewards.
        """
        z = _normalized(self.holistic, hierarchy)
        offsets = self.sample.token_offsets
        computed = [aspect for aspect in self.aspects.values() if aspect is not None]
        if not all(map(math.isfinite, tokens)):
            raise SampleError(
                "non_finite", "weights or constants are so large that the reward overflows"
            )
        laid = tokens if offsets is None else tokens[: len(offsets)]
        aspects = self.aspects if offsets is None or offsets else _earning_nothing(self.aspects)
        return Reward(
            reward=float(sum(laid)),
            token_rewards=None if offsets is None else tuple(laid),
            holistic_score=self.holistic.value or 0.0,
            holistic_normalized=z,
            admitted=is_admitted(z, hierarchy),
            aspects=aspects,
            truncated=self.holistic.truncated or any(one.truncated for one in computed),
        )

    def _aspect_input(self, aspect: AspectReward) -> AspectInput:
        rewards = aspect.token_rewards if self.sample.token_offsets else (aspect.reward,)
        return AspectInput(rewards or (), aspect.value, aspect.level)


def aspect_reward(score: Score, rule: AspectRule, sample: Sample) -> AspectReward:
    """Turn an aspect's score into its reward, before the aspect's weight."""
    text = sample.completion_text
    # Packed spans are made anew each time that they are looked at.
    tokens = None if sample.token_offsets is None else tuple(sample.token_offsets)
    levels = rule.raw_values(score, tokens or whitespace_tokens(text))
    values = rule.shaped(levels)
    laid: tuple[float, ...] | None = None
    if tokens is not None:
        each = rule.placement is Placement.TOKENS and score.segments is not None
        laid = (
            tuple(value for _, value in values[: len(tokens)])
            if each
            else place_on_tokens(values, text, tokens)
        )
    earned = [value for _, value in values]
    level = _mean([level for _, level in levels])
    return AspectReward(sum(earned), laid, score.segments, _mean(earned), level, score.truncated)


def combine_rewards(
    samples: Sequence[ScoredSample], hierarchy: RuleParams
) -> list[Reward | SampleError]:
    """Combine the scores of each sample by the recipe's rule, in order."""
    parts: dict[int, RuleInputs] = {}
    rewards: dict[int, Reward | SampleError] = {}
    for index, scored in enumerate(samples):
        try:
            parts[index] = scored.rule_inputs(hierarchy)
        except SampleError as error:
            rewards[index] = error
    combined = apply_rule(list(parts.values()), hierarchy)
    for index, tokens in zip(parts, combined, strict=True):
        rewards[index] = _reward(samples[index], tokens, hierarchy)
    return [rewards[index] for index in range(len(samples))]


def _reward(
    scored: ScoredSample, tokens: tuple[float, ...] | SampleError, hierarchy: RuleParams
) -> Reward | SampleError:
    if isinstance(tokens, SampleError):
        return tokens
    try:
        return scored.reward(tokens, hierarchy)
    except SampleError as error:
        return error


def _earning_nothing(
    aspects: Mapping[str, AspectReward | None],
) -> dict[str, AspectReward | None]:
    return {
        name: None if aspect is None else replace(aspect, reward=0.0)
        for name, aspect in aspects.items()
    }


def _normalized(score: Score, hierarchy: RuleParams) -> float:
    if score.value is None:
        raise SampleError("model_failed", "the holistic model gave no score")
    z = normalize(score.value, hierarchy)
    if not math.isfinite(z):
        raise SampleError("non_finite", "mean or std are so extreme that the score overflows")
    return z


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


#: Rules that look at one sample at a time.
_SAMPLE_RULES: Mapping[Rule, Callable[[RuleInputs, RuleParams], tuple[float, ...]]] = {
    Rule.HIERARCHICAL: sum_of_counted,
    Rule.WEIGHTED_SUM: sum_of_counted,
    Rule.HOLISTIC_ONLY: sum_of_counted,
    Rule.ASPECT_ONLY: sum_of_counted,
    Rule.SOFT_GATE: soft_gate,
    Rule.CASCADE: cascade,
    Rule.VETO: veto,
    Rule.PRODUCT: product,
    Rule.MINIMUM: minimum,
    Rule.PAR: par,
    Rule.LOG_SIGMOID: log_sigmoid,
}

#: Rules that compare the samples of a group.
_GROUP_RULES: Mapping[Rule, Callable[[Sequence[RuleInputs], RuleParams], list[Tokens]]] = {
    Rule.GDPO: gdpo,
    Rule.MO_GRPO: mo_grpo,
}


def apply_rule(samples: Sequence[RuleInputs], hierarchy: RuleParams) -> list[Tokens]:
    """Return the rewards of each sample's tokens, or why it has none, in order."""
    if hierarchy.rule in _GROUP_RULES:
        return _GROUP_RULES[hierarchy.rule](samples, hierarchy)
    return [_apply_sample_rule(parts, hierarchy) for parts in samples]


def validate_groups(
    groups: Sequence[str | None], hierarchy: RuleParams
) -> list[SampleError | None]:
    """Say of samples, by their groups' names, which the rule cannot serve whatever they score."""
    if hierarchy.rule in _GROUP_RULES:
        return validate_group_members(groups, hierarchy)
    return [None] * len(groups)


def _apply_sample_rule(parts: RuleInputs, hierarchy: RuleParams) -> Tokens:
    try:
        return _SAMPLE_RULES[hierarchy.rule](parts, hierarchy)
    except SampleError as error:
        return error
    except ArithmeticError:
        return SampleError("non_finite", "the rule's constants are so large that it overflows")
