"""Where rewards on spans of a completion land on the policy's tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

from alarm_models.sample import Span

__all__ = ["Placement", "lay_on_tokens", "on_every_token", "words"]

_WORD = re.compile(r"\S+")


class Placement(StrEnum):
    """Where the rewards of segments land."""

    #: On the last token of each segment.
    SEGMENT_ENDS = "segment-ends"
    #: On every token: one that overlaps a negative segment is wrong, and every other is right.
    TOKENS = "tokens"


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


def on_every_token(
    errors: Sequence[Span], tokens: Sequence[Span], right: float, wrong: float
) -> tuple[float, ...]:
    """Return ``wrong`` for each token that shares a character with an error, else ``right``."""
    return tuple(
        wrong if any(_overlap(token, error) for error in errors) else right for token in tokens
    )


def words(text: str) -> tuple[Span, ...]:
    """Find the white-space words, which stand for tokens where a caller sends none."""
    return tuple(Span(*match.span()) for match in _WORD.finditer(text))


def _overlap(one: Span, other: Span) -> bool:
    return max(one.start, other.start) < min(one.end, other.end)


def _without_trailing_space(span: Span, text: str) -> Span:
    return Span(span.start, span.start + len(text[span.start : span.end].rstrip()))


def _last_overlapping(span: Span, tokens: Sequence[Span]) -> int | None:
    for index in range(len(tokens) - 1, -1, -1):
        if _overlap(tokens[index], span):
            return index
    return None
