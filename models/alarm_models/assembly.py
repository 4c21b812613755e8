"""From one sample's scores to its reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alarm_models.alignment import Placement, lay_on_tokens, on_every_token, words
from alarm_models.errors import SampleError
from alarm_models.hierarchy import Hierarchy, combine, counts_aspects, is_admitted, normalize
from alarm_models.sample import AspectReward, Reward, Sample, Score, SegmentScore, Span
from alarm_models.shaping import SHAPINGS, Shaping

__all__ = ["AspectRule", "aspect_reward", "assemble"]


@dataclass(frozen=True, slots=True)
class AspectRule:
    """How an aspect's score becomes its reward.

    A judged segment earns ``positive`` or ``negative``; the score of a whole completion earns
    ``(score - mean) / std * scale + bias``. Either is shaped. Placed on tokens, each token earns
    ``negative`` where a negative segment overlaps it, and ``positive`` elsewhere.
    """

    positive: float
    negative: float
    mean: float
    std: float
    scale: float
    bias: float
    shaping: Shaping
    placement: Placement = Placement.SEGMENT_ENDS

    def token_values(
        self, segments: Sequence[SegmentScore], tokens: Sequence[Span]
    ) -> tuple[float, ...]:
        """Return the shaped value of each token by the segments that overlap it."""
        shape = SHAPINGS[self.shaping]
        errors = [segment.span for segment in segments if segment.is_positive is False]
        return on_every_token(errors, tokens, shape(self.positive), shape(self.negative))

    def values(self, score: Score) -> list[tuple[Span | None, float]]:
        """Return the shaped values with the spans they belong to; None is the whole completion."""
        shape = SHAPINGS[self.shaping]
        if score.segments is not None:
            return [
                (segment.span, shape(self.positive if segment.is_positive else self.negative))
                for segment in score.segments
                if segment.is_positive is not None
            ]
        if score.value is None:
            return []
        value = (score.value - self.mean) / self.std * self.scale + self.bias
        return [(None, shape(value))]


def aspect_reward(score: Score, rule: AspectRule, sample: Sample) -> AspectReward:
    """Turn an aspect's score into its reward, before the aspect's weight."""
    tokens = sample.token_offsets
    if rule.placement is Placement.TOKENS and score.segments is not None:
        each = rule.token_values(score.segments, tokens or words(sample.completion_text))
        on_tokens = None if tokens is None else each[: len(tokens)]
        return AspectReward(sum(each), on_tokens, score.segments)
    values = rule.values(score)
    laid = None if tokens is None else lay_on_tokens(values, sample.completion_text, tokens)
    return AspectReward(sum(value for _, value in values), laid, score.segments)


def assemble(
    sample: Sample,
    holistic: Score,
    aspects: Mapping[str, AspectReward | None],
    hierarchy: Hierarchy,
) -> Reward:
    """Combine a sample's scores by the recipe's rule.

    ``aspects`` holds every aspect of the recipe, None where it was not computed; those that the
    rule counts and that have a weight must be there.
    """
    if holistic.value is None:
        raise SampleError("model_failed", "the holistic model gave no score")
    z = normalize(holistic.value, hierarchy)
    counted = {
        name: aspect
        for name, aspect in aspects.items()
        if aspect is not None and hierarchy.weights[name] != 0 and counts_aspects(z, hierarchy)
    }
    scalars = {name: (aspect.reward,) for name, aspect in counted.items()}
    (reward,) = combine(z, scalars, hierarchy, 1)
    token_rewards = None
    if sample.token_offsets is not None:
        laid = {name: aspect.token_rewards or () for name, aspect in counted.items()}
        token_rewards = combine(z, laid, hierarchy, len(sample.token_offsets))
    return Reward(
        reward=sum(token_rewards) if token_rewards else reward,
        token_rewards=token_rewards,
        holistic_score=holistic.value,
        holistic_normalized=z,
        admitted=is_admitted(z, hierarchy),
        aspects=aspects,
        truncated=holistic.truncated,
    )
