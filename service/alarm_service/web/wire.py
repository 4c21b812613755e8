"""Between the shapes on the wire and the nouns inside."""

from __future__ import annotations

from collections.abc import Sequence

from alarm_models.errors import SampleError
from alarm_models.sample import (
    AspectReward,
    Message,
    PackedSpans,
    Reward,
    Sample,
    Score,
    SegmentScore,
    Span,
)
from alarm_service.web.answers import (
    AspectOut,
    HolisticOut,
    NamedScoresOut,
    RewardOut,
    SampleErrorOut,
    ScoreOut,
    SegmentOut,
)
from alarm_service.web.schemas import MessageIn, SampleIn, SpanIn

__all__ = ["reward_out", "sample_in", "score_out"]


def sample_in(sample: SampleIn) -> Sample:
    """Take a sample off the wire."""
    offsets = sample.token_offsets
    return Sample(
        prompt=_content(sample.prompt),
        completion=_content(sample.completion),
        fields=sample.fields,
        token_offsets=None if offsets is None else _spans(offsets),
        segments={name: _spans(spans) for name, spans in sample.segments.items()},
        id=None if sample.id is None else str(sample.id),
        group=None if sample.group is None else str(sample.group),
    )


def score_out(sample: SampleIn, outcome: Score | SampleError) -> ScoreOut:
    """Put a sample's score, or its error, on the wire."""
    if isinstance(outcome, SampleError):
        return ScoreOut(
            id=sample.id,
            score=None,
            segments=None,
            num_tokens=0,
            truncated=False,
            error=_error(outcome),
        )
    score = ScoreOut(
        id=sample.id,
        score=outcome.value,
        segments=_segments(outcome.segments),
        num_tokens=outcome.num_tokens,
        truncated=outcome.truncated,
        error=None,
    )
    if outcome.outputs is None:
        return score
    return NamedScoresOut(**dict(score), outputs=dict(outcome.outputs))


def reward_out(
    sample: SampleIn, outcome: Reward | SampleError, aspects: Sequence[str]
) -> RewardOut:
    """Put a sample's reward, or its error, on the wire; ``aspects`` are the recipe's names."""
    if isinstance(outcome, SampleError):
        return RewardOut(
            id=sample.id,
            reward=None,
            token_rewards=None,
            holistic=None,
            admitted=None,
            aspects=dict.fromkeys(aspects),
            truncated=False,
            error=_error(outcome),
        )
    tokens = outcome.token_rewards
    return RewardOut(
        id=sample.id,
        reward=outcome.reward,
        token_rewards=None if tokens is None else list(tokens),
        holistic=HolisticOut(score=outcome.holistic_score, normalized=outcome.holistic_normalized),
        admitted=outcome.admitted,
        aspects={name: _aspect(aspect) for name, aspect in outcome.aspects.items()},
        truncated=outcome.truncated,
        error=None,
    )


def _content(content: str | list[MessageIn]) -> str | tuple[Message, ...]:
    if isinstance(content, str):
        return content
    return tuple(Message(message.role, message.content) for message in content)


def _spans(spans: Sequence[SpanIn] | PackedSpans) -> Sequence[Span]:
    if isinstance(spans, PackedSpans):
        return spans
    return tuple(Span(start, end) for start, end in spans)


def _aspect(aspect: AspectReward | None) -> AspectOut | None:
    if aspect is None:
        return None
    tokens = aspect.token_rewards
    return AspectOut(
        reward=aspect.reward,
        token_rewards=None if tokens is None else list(tokens),
        segments=_segments(aspect.segments),
    )


def _segments(segments: Sequence[SegmentScore] | None) -> list[SegmentOut] | None:
    if segments is None:
        return None
    return [
        SegmentOut(start=one.span.start, end=one.span.end, label=one.label, score=one.score)
        for one in segments
    ]


def _error(error: SampleError) -> SampleErrorOut:
    return SampleErrorOut.model_validate({"code": error.code, "message": error.message})
