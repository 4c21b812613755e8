"""Alias of `alarm_models.types`, which users' `python` rewards may import by this name."""

from alarm_models.types import Message, Sample, SegmentScore, Span

__all__ = ["Message", "Sample", "SegmentScore", "Span"]
