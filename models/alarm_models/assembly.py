"""From samples' scores to their rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from alarm_models.alignment import Placement, lay_on_tokens, on_every_token, words
from alarm_models.errors import SampleError
from alarm_models.hierarchy import (
    Hierarchy,
    counts_aspects,
    is_admitted,
    needs_aspect,
    normalize,
)
from alarm_models.rules import Part, Parts, combine_all
from alarm_models.sample import AspectReward, Reward, Sample, Score, Span
from alarm_models.shaping import SHAPINGS, Shaping

__all__ = ["AspectRule", "Scored", "aspect_reward", "assemble"]


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

    def levels(self, score: Score, tokens: Sequence[Span]) -> list[tuple[Span | None, float]]:
        """Return the values before shaping, with their spans; None is the whole completion.

        ``tokens`` are the completion's, or its words.
        """
        if score.segments is None:
            return [] if score.value is None else [(None, self._level(score.value, None))]
        if self.placement is Placement.TOKENS:
            errors = [segment.span for segment in score.segments if segment.is_positive is False]
            levels = on_every_token(errors, tokens, self.positive, self.negative)
            return list(zip(tokens, levels, strict=False))
        return [
            (segment.span, self._level(segment.score, segment.is_positive))
            for segment in score.segments
            if segment.score is not None
        ]

    def shaped(
        self, levels: Sequence[tuple[Span | None, float]]
    ) -> list[tuple[Span | None, float]]:
        """Return what the levels are worth."""
        shape = SHAPINGS[self.shaping]
        return [(span, shape(level)) for span, level in levels]

    def values(self, score: Score, tokens: Sequence[Span]) -> list[tuple[Span | None, float]]:
        """Return the levels, shaped."""
        return self.shaped(self.levels(score, tokens))

    def _level(self, score: float, is_positive: bool | None) -> float:
        if is_positive is None:
            return (score - self.mean) / self.std * self.scale + self.bias
        return self.positive if is_positive else self.negative


@dataclass(frozen=True, slots=True)
class Scored:
    """One sample with the scores that its reward is made of.

    ``aspects`` holds every aspect of the recipe, None where it was not computed; those that the
    rule needs must be there. ``reference`` is the holistic score of a reference completion.
    """

    sample: Sample
    holistic: Score
    aspects: Mapping[str, AspectReward | None]
    reference: Score | None = None

    def parts(self, hierarchy: Hierarchy) -> Parts:
        """Return what the rule combines; raise `SampleError` where the holistic score lacks."""
        z = _normalized(self.holistic, hierarchy)
        counted = {
            name: self._part(aspect)
            for name, aspect in self.aspects.items()
            if aspect is not None and needs_aspect(name, hierarchy) and counts_aspects(z, hierarchy)
        }
        reference_z = None if self.reference is None else _normalized(self.reference, hierarchy)
        num_tokens = len(self.sample.token_offsets or ()) or 1
        return Parts(z, counted, num_tokens, reference_z, self.sample.group)

    def reward(self, tokens: Sequence[float], hierarchy: Hierarchy) -> Reward:
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

    def _part(self, aspect: AspectReward) -> Part:
        rewards = aspect.token_rewards if self.sample.token_offsets else (aspect.reward,)
        return Part(rewards or (), aspect.value, aspect.level)


def aspect_reward(score: Score, rule: AspectRule, sample: Sample) -> AspectReward:
    """Turn an aspect's score into its reward, before the aspect's weight."""
    text = sample.completion_text
    # Packed spans are made anew each time that they are looked at.
    tokens = None if sample.token_offsets is None else tuple(sample.token_offsets)
    levels = rule.levels(score, tokens or words(text))
    values = rule.shaped(levels)
    laid: tuple[float, ...] | None = None
    if tokens is not None:
        each = rule.placement is Placement.TOKENS and score.segments is not None
        laid = (
            tuple(value for _, value in values[: len(tokens)])
            if each
            else lay_on_tokens(values, text, tokens)
        )
    earned = [value for _, value in values]
    level = _mean([level for _, level in levels])
    return AspectReward(sum(earned), laid, score.segments, _mean(earned), level, score.truncated)


def assemble(samples: Sequence[Scored], hierarchy: Hierarchy) -> list[Reward | SampleError]:
    """Combine the scores of each sample by the recipe's rule, in order."""
    parts: dict[int, Parts] = {}
    rewards: dict[int, Reward | SampleError] = {}
    for index, scored in enumerate(samples):
        try:
            parts[index] = scored.parts(hierarchy)
        except SampleError as error:
            rewards[index] = error
    combined = combine_all(list(parts.values()), hierarchy)
    for index, tokens in zip(parts, combined, strict=True):
        rewards[index] = _reward(samples[index], tokens, hierarchy)
    return [rewards[index] for index in range(len(samples))]


def _reward(
    scored: Scored, tokens: tuple[float, ...] | SampleError, hierarchy: Hierarchy
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


def _normalized(score: Score, hierarchy: Hierarchy) -> float:
    if score.value is None:
        raise SampleError("model_failed", "the holistic model gave no score")
    z = normalize(score.value, hierarchy)
    if not math.isfinite(z):
        raise SampleError("non_finite", "mean or std are so extreme that the score overflows")
    return z


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
