"""Alias of `alarm_models.types`, which users' `python` rewards may import by this name."""

from alarm_models.types import AspectReward, Message, Reward, Sample, Score, SegmentScore, Span

__all__ = ["AspectReward", "Message", "Reward", "Sample", "Score", "SegmentScore", "Span"]
