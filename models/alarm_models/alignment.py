"""Where rewards on spans of a completion land on the policy's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from alarm_models.sample import Span

__all__ = ["lay_on_tokens"]


def lay_on_tokens(
    values: Sequence[tuple[Span | None, float]], text: str, tokens: Sequence[Span]
) -> tuple[float, ...]:
    """Lay each value on one token; values that land on the same token add up.

    A span's value lands on the last token that overlaps the span without its trailing white space;
    one that no token overlaps, and one without a span (a reward of the whole completion), on the
    last token, end-of-text included. ``tokens`` are spans of ``text``, starts never decreasing.
    Returns one float a token; without tokens there is nowhere to land.
    """
    rewards = [0.0] * len(tokens)
    if not rewards:
        return ()
    for span, value in values:
        place = (
            None if span is None else _last_overlapping(_without_trailing_space(span, text), tokens)
        )
        rewards[-1 if place is None else place] += value
    return tuple(rewards)


def _without_trailing_space(span: Span, text: str) -> Span:
    return Span(span.start, span.start + len(text[span.start : span.end].rstrip()))


def _last_overlapping(span: Span, tokens: Sequence[Span]) -> int | None:
    for index in range(len(tokens) - 1, -1, -1):
        start, end = tokens[index]
        if max(start, span.start) < min(end, span.end):
            return index
    return None
